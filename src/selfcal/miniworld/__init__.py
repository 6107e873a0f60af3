"""MiniWorld: a built-in visual question-answering world whose truth is known.

Small real images (scenes of coloured shapes, bar charts, handwritten digits), questions whose
answers need a short chain of reasoning, small real models, and a verifier that reads any rationale
and knows whether it is true. It makes the whole method runnable, and measurable, on a laptop.
"""
