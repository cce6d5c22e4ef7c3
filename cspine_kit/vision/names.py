"""Names of the vision room's stages and files, importable without torch.

In: nothing. Out: constants. Example: `paths.model(VERTEBRA, 0) / WEIGHTS_FILE`.
"""

VERTEBRA = "vertebra"
"""Name of the vertebra stage where a member name is asked for."""

WEIGHTS_FILE, MODEL_FILE = "weights.safetensors", "model.json"
"""One fold model on disk. The weights are written last, with the key that marks them done."""

SLICES = "slices"
"""What a network says of slices, among the tables that it fills."""

DICE = "vertebra_dice"
"""How far a segmentation and the mask agree, level by level: filled by kinds that draw levels."""
