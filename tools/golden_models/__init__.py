"""Golden numbers of released definitions: features, logits and gradients of small random models.

    pip install -e '.[parity]'
    python -m tools.golden_models tests/golden/models [FAMILY …]

Writes one folder per family: its files as the library saves them, and `expected.safetensors`. The
tests of weights build the same models again if torch is installed, and read these files if not.
open_clip's CoCa writes captions with transformers 4 only (`pip install 'transformers<5'`).
"""

from tools.golden_models import encoders, eva, fastvit, hugging_face, open_clip, timm
from tools.golden_models.core import CONTEXT, VOCABULARY, Families, Model, outputs, randomize, state

__all__ = ["CONTEXT", "FAMILIES", "VOCABULARY", "Model", "outputs", "randomize", "state"]

FAMILIES: Families = {
    **hugging_face.FAMILIES,
    **open_clip.FAMILIES,
    **timm.FAMILIES,
    **eva.FAMILIES,
    **encoders.FAMILIES,
    **fastvit.FAMILIES,
}
