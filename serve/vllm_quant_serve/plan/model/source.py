"""The model of a plan: a local folder, or a Hub id, of which only the config and the headers are fetched. No torch."""

from __future__ import annotations

from pathlib import Path

from vllm_quant_plugin.checkpoint import INDEX_NAME, Checkpoint, TensorInfo, read_checkpoint, read_json
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.hub import resolve_model
from vllm_quant_plugin.side_config import read_side_config


def read_model(model: str, revision: str | None = None) -> tuple[Checkpoint, str]:
    """The checkpoint, and a remark on the source of its tensors.

    Weights are never downloaded. For Hub models, only the headers are read, by range requests.

    Raises:
        CheckpointError: no such folder or Hub id, or damaged files.
    """
    if not Path(model).expanduser().exists():
        _quiet()
    folder = resolve_model(model, revision=revision, weights=False)
    if Path(model).expanduser().exists() or _complete(folder):
        checkpoint = read_checkpoint(folder, need_tensors=False)
        return checkpoint, "" if checkpoint.tensors else "no safetensors here: weights are computed from config.json"
    config = folder / "config.json"
    if not config.exists():
        raise CheckpointError(f"{model}: has no config.json", "give the id of a model in transformers' format")
    tensors = hub_tensors(model, revision)
    note = "headers read from the Hub" if tensors else "the Hub is unreachable: weights are computed from config.json"
    return Checkpoint(folder, read_json(config), tensors, read_side_config(folder)), note


def _quiet() -> None:
    """No progress bars for a few small files."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def _complete(folder: Path) -> bool:
    """Whether a snapshot in the Hub's cache holds all its weights."""
    index = folder / INDEX_NAME
    if not index.exists():
        return any(folder.glob("*.safetensors"))
    shards = read_json(index).get("weight_map")
    return isinstance(shards, dict) and all((folder / str(name)).exists() for name in set(shards.values()))


def hub_tensors(model: str, revision: str | None = None) -> dict[str, TensorInfo]:
    """Tensors of a Hub model, from its headers; empty when the Hub is unreachable."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        metadata = get_safetensors_metadata(model, revision=revision)
    except NotASafetensorsRepoError:
        raise CheckpointError(f"{model}: holds no safetensors", "take a repository with safetensors weights") from None
    except SafetensorsParsingError:
        raise CheckpointError(
            f"{model}: a safetensors header is damaged", "report it to the owner of the repository"
        ) from None
    except Exception as err:
        # Unreachable: the Hub's client also raises the errors of its HTTP library, which differs between versions.
        if isinstance(err, (TypeError, AttributeError, KeyError, NameError)):
            raise
        return {}
    found = {}
    for name, file in metadata.files_metadata.items():
        for tensor, info in file.tensors.items():
            start, end = info.data_offsets
            found[tensor] = TensorInfo(tensor, info.dtype, tuple(info.shape), Path(name), start, end - start)
    return found
