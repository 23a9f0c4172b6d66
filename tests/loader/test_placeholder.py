"""What vLLM's model files read from parameters: the attributes that they find on placeholders, and what they mean."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.support.matrix import CELLS
from vllm_quant_kernels.scheme import Int
from vllm_quant_plugin.errors import CheckpointError
from vllm_quant_plugin.formats import get_format
from vllm_quant_plugin.formats.base import TensorSpec
from vllm_quant_plugin.formats.compressed_tensors import PACK_QUANTIZED
from vllm_quant_plugin.loader.placeholder import Placeholder, placeholder
from vllm_quant_plugin.schemes import Storage, StoredScheme

# Read by model files and vLLM's model loaders, and right without our help, for the reason given.
ELSEWHERE = {
    "data": "written to without a weight_loader: a placeholder has no elements, so this fails loudly",
    "copy_": "as data",
    "numel": "0: nothing that counts elements while loading is about a placeholder",
    "size": "of an empty tensor: default_weight_loader refuses it",
    "ndim": "of the modules that Transformers builds, which have no placeholders",
    "dtype": "a dtype that the checkpoint may bring",
    "device": "of every tensor",
    "requires_grad": "of every parameter",
    "default": "of inspect.Parameter in gemma3n_mm.py",
    "engram_vocab_start": "of the tables of deepseek_v41's own embeddings",
    "is_meta": "of the kernels' own tensors in kda.py",
    "is_transposed": "by a weight_loader of RoutedExperts, which ours replaces",
    "quant_method": "block scales of fused experts; set where experts have them",
    "tp_rank": "by weight loaders of the layers in own_parts.py, which ours replace",
    "is_sharded_weight": "of openpangu's own parameters; whether the checkpoint holds one rank's share: no",
}
SPECS = [
    (cell.name, scheme)
    for cell in CELLS
    if not cell.refused and (scheme := cell.recipe.scheme or cell.recipe.online) is not None
] + [
    ("pack-quantized-3bit", StoredScheme(Int(3), 64, symmetric=False, act_order=True, storage=PACK_QUANTIZED)),
    ("pack-quantized-channel", StoredScheme(Int(4), -1, storage=PACK_QUANTIZED)),
]


def _is_parameters(node: ast.AST) -> bool:
    """Whether an expression is a table or an iterator of a model's parameters."""
    text = ast.unparse(node)
    return "params_dict" in text or "param_dict" in text or "parameters()" in text or "params[" in text


def _parameter_names(function: ast.AST) -> set[str]:
    """Names that hold parameters inside ``function``."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and node.arg in ("param", "parameter"):
            names.add(node.arg)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            if _is_parameters(node.value):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.For, ast.comprehension)) and "parameters(" in ast.unparse(node.iter):
            target = node.target.elts[-1] if isinstance(node.target, ast.Tuple) else node.target
            names |= {target.id} if isinstance(target, ast.Name) else set()
    return names


def _reads(function: ast.AST) -> Iterator[str]:
    """Attributes that ``function`` reads from parameters."""
    names = _parameter_names(function)

    def holds(node: ast.AST) -> bool:
        return (isinstance(node, ast.Name) and node.id in names) or (
            isinstance(node, ast.Subscript) and _is_parameters(node)
        )

    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and holds(node.value):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr") and holds(node.args[0]):
            yield ast.unparse(node.args[1]).strip("'")


def attributes_read_by_models() -> dict[str, set[str]]:
    """Attribute of a parameter: the files under vllm/model_executor/models that read it."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    found: dict[str, set[str]] = {}
    root = Path(spec.origin).parent
    folders = ("model_executor/models", "models", "model_executor/layers/mamba", "model_executor/layers/fused_moe")
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for attribute in _reads(node):
                    found.setdefault(attribute, set()).add(path.name)
    return found


def test_every_attribute_that_a_model_file_reads_is_provided_or_explained() -> None:
    found = attributes_read_by_models()
    assert {"output_dim", "weight_loader", "shape", "narrow"} <= set(found), "the scan misses known readers"
    assert "falcon.py" in found["output_dim"]
    provided = {*Placeholder.__annotations__, "shape", "narrow"}
    unexplained = {name: files for name, files in found.items() if name not in provided | set(ELSEWHERE)}
    assert not unexplained
    assert set(ELSEWHERE) <= set(found), "explained, but read nowhere"


@pytest.mark.parametrize(("name", "scheme"), SPECS, ids=[name for name, _ in SPECS])
def test_dimensions_are_those_that_grow_with_the_matrix(name: str, scheme: StoredScheme) -> None:
    n, k = 256, 512
    layout = get_format(scheme)
    specs = layout.tensors(scheme, n, k)
    wider, taller = layout.tensors(scheme, n, 2 * k), layout.tensors(scheme, 2 * n, k)
    for leaf, spec in specs.items():
        shape = spec.shapes[0]
        rows = [d for d in range(len(shape)) if taller[leaf].shapes[0][d] != shape[d]]
        columns = [d for d in range(len(shape)) if wider[leaf].shapes[0][d] != shape[d]]
        assert rows == ([] if spec.output_dim is None else [spec.output_dim]), leaf
        assert columns in ([], [spec.input_dim]), leaf
        if spec.packed_dim is not None:
            size = (n, k)[spec.packed_dim == spec.input_dim]
            factor = placeholder(spec, scheme.bits, print).packed_factor
            assert size / factor == shape[spec.packed_dim], leaf


def test_a_placeholder_looks_like_the_stored_tensor_and_is_empty() -> None:
    scheme = StoredScheme(Int(3), 64, storage=Storage.of("gptq", zero_offset=1))
    specs = get_format(scheme).tensors(scheme, 64, 128)
    found = {leaf: placeholder(spec, 3, print) for leaf, spec in specs.items()}
    qweight = found["qweight"]
    assert qweight.shape == (12, 64)
    assert (qweight.output_dim, qweight.input_dim, qweight.packed_dim) == (1, 0, 0)
    assert qweight.packed_factor == Fraction(32, 3)
    assert (qweight.numel(), qweight.size(), qweight.dtype) == (0, (0,), torch.int32)
    assert not hasattr(found["g_idx"], "output_dim")
    assert not hasattr(found["scales"], "packed_dim")
    with pytest.raises(RuntimeError):
        qweight.data.copy_(torch.zeros(12, 64, dtype=torch.int32))


@pytest.mark.parametrize("dim", [0, 1])
def test_slices_are_joined_in_their_order(dim: int) -> None:
    """As step3_text.py and step3p5.py write q, k and v."""
    loaded: list[torch.Tensor] = []
    spec = TensorSpec(((6, 6),), ("float32",), output_dim=dim)
    param = placeholder(spec, 8, lambda parameter, tensor: loaded.append(tensor))
    whole = torch.randn(6, 6)
    for begin, end in ((3, 4), (0, 3), (4, 6)):
        assert not loaded
        param.narrow(param.output_dim, begin, end - begin).copy_(whole.narrow(dim, begin, end - begin))
    assert len(loaded) == 1
    assert torch.equal(loaded[0], whole)


def test_slices_that_do_not_fit() -> None:
    param = placeholder(TensorSpec(((6, 4),), ("float32",), output_dim=0), 8, print)
    with pytest.raises(CheckpointError, match=r"shape \[3, 4\] does not fit"):
        param.narrow(0, 0, 2).copy_(torch.zeros(3, 4))
    with pytest.raises(CheckpointError, match="outside a tensor of shape"):
        param.narrow(0, 4, 3)
