"""What fastdit must know about `AcmeTransformer`."""

from fastdit import VideoGrid


class AcmeSparseProcessor:
    def __init__(self, original, slot):
        self.original, self.slot = original, slot

    def __call__(self, attn, tokens):
        batch, length, _ = tokens.shape
        if self.slot.wants_dense(length, batch, attn.heads):
            return self.original(attn, tokens)
        return attn.out(self.slot.attend(*attn.project(tokens)).flatten(2))


class AcmeAdapter:
    family = "acme"
    transformer_classes = ("AcmeTransformer",)

    def sites(self, transformer):
        return [(f"layers.{index}", layer) for index, layer in enumerate(transformer.layers)]

    def grid(self, transformer, args, kwargs):
        latents = args[0] if args else kwargs["latents"]
        frames, height, width = latents.shape[1:4]
        return VideoGrid(frames=frames, height=height, width=width)

    def processor(self, original, slot):
        return AcmeSparseProcessor(original, slot)

    def attach(self, transformer, session, number):
        def before(module, args, kwargs):
            session.begin_forward(number, self.grid(module, args, kwargs))

        return transformer.register_forward_pre_hook(before, with_kwargs=True).remove
