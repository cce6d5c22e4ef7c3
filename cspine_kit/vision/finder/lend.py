"""The finder that ships as vertebra model k, where no mask could teach one.

In: a fold's chain without masks. Out: its vertebra model, a copy of the finder. Example::

    from cspine_kit.vision.inputs.tables import open_inputs

    chain = FoldChain(config, paths, open_inputs(paths), fold=0)
    if chain.by_finder:                          # no mask, and `vertebra.weights: finder`
        lend_finder(chain)

It has learned from no study of any competition, so its lineage is empty and every fold may have it.
"""

import logging
import shutil

from cspine_kit.core.config import VolumesConfig
from cspine_kit.core.errors import ConfigError
from cspine_kit.core.paths import FINDER
from cspine_kit.core.runs import publish, read_json, write_json
from cspine_kit.vision.finder.finder import CARD_FILE
from cspine_kit.vision.names import MODEL_FILE, VERTEBRA, WEIGHTS_FILE
from cspine_kit.vision.oof.chain import FoldChain
from cspine_kit.vision.oof.lineage import HASH, seal_model, write_lineage

log = logging.getLogger(__name__)


def lend_finder(chain: FoldChain) -> None:
    """Write vertebra model k unless it is there.

    Raises:
        ConfigError: the run's coarse volumes are not those that the finder knows.
    """
    if chain.has_model(VERTEBRA):
        return
    known = VolumesConfig.model_validate(read_json(FINDER / CARD_FILE)["volumes"])
    for key in ("coarse", "curve"):
        own, needed = getattr(chain.config.volumes, key), getattr(known, key)
        if own != needed:
            raise ConfigError(
                f"no study has a mask, and volumes.{key} is {own}: the level finder that ships "
                f"knows {needed}; set that, or give masks"
            )
    log.info("fold %d: no mask to learn from: the level finder that ships speaks", chain.fold)
    folder, key = chain.paths.model(VERTEBRA, chain.fold), chain.model_key(VERTEBRA)
    write_lineage(folder, [], upstream=[], key=key)
    model = read_json(FINDER / MODEL_FILE)
    write_json(folder / MODEL_FILE, {k: value for k, value in model.items() if k != HASH})
    with publish(folder / WEIGHTS_FILE, key) as temporary:
        shutil.copyfile(FINDER / WEIGHTS_FILE, temporary)
    seal_model(folder)
