"""Guidance scales of a file in a pipeline of diffusers; nothing of guidejax is needed."""

import json


class Scales:
    """`pipe(..., guidance_scale=scales.first, callback_on_step_end=scales, ...)`."""

    def __init__(self, path):
        with open(path) as file:
            self.scales = json.load(file)["guidance_scale"]
        self.both = None  # the embeddings of both branches

    @property
    def first(self):
        """For the argument `guidance_scale`."""
        # The embeddings of both branches are made where this is above 1.
        return max(self.scales[0], 1 + 1e-6)

    def __call__(self, pipe, step, timestep, tensors):
        """Set the scale of the next step."""
        if self.both is None:
            self.both = tensors["prompt_embeds"]
        if step + 1 < len(self.scales):
            scale = self.scales[step + 1]
            # At 1 and below a pipeline makes the conditional pass alone.
            pipe._guidance_scale = scale
            tensors["prompt_embeds"] = self.both if scale > 1 else self.both.chunk(2)[1]
        return tensors
