"""Names of the vision room's stages, heads and files, importable without torch.

In: nothing. Out: constants. Example: `paths.model(VERTEBRA, 0) / WEIGHTS_FILE`.
"""

VERTEBRA = "vertebra"
"""Name of the vertebra stage where a member name is asked for."""

HEADS: dict[str, dict[str, int]] = {
    "vertebra": {"visible": 7, "box": 4},
    "fracture": {"visible": 7, "fracture": 7, "any_fracture": 1},
}
"""Heads of the two stages: visibility of C1..C7; the spine box; fracture of C1..C7, as what all
levels share plus what is a level's own."""

WEIGHTS_FILE, MODEL_FILE = "weights.safetensors", "model.json"
"""One fold model on disk. The weights are written last, with the key that marks them done."""
