"""A world worth looking at: drawn things in drawn scenes, 64 × 64 pixels, and captions for them.

It stands beside the world of shapes (``cones_registry.demo.world``), which the shipped base model
draws, until a base model trained on this one (``tools/train_base.py``) draws as well.
``scenes`` says what there is and how people would caption it, ``pictures`` paints it,
``judge`` reads a picture back.
"""
