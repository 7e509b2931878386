"""The import direction of the house, read from the sources, and what an import may need."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lite3r_jax"

# room: the rooms it may import. Every room may import itself and the leaves.
LEAVES = {
    "allocator",
    "errors",
    "files",
    "folder_lock",
    "geometry",
    "interrupts",
    "mesh",
    "name_map",
    "npz_file",
    "processes",
    "progress",
    "setting_bounds",
}
KERNELS = {"kernels"}
ATTENTION = KERNELS | {"attention"}
LAYERS = ATTENTION | {"layers"}
BACKBONES = LAYERS | {"backbones"}
MODELS = BACKBONES | {"losses", "metrics", "precision", "weights"}
WORK = MODELS | {"data", "deploy", "distillation", "html_report", "models", "scene"}
OUTPUT = {"exports", "refine", "viewer", "service"}
RUNS = (
    WORK
    | OUTPUT
    | {"training", "small_teacher", "evaluation", "infer", "benchmarking", "experiment"}
    | {"long_video"}
)
MAY_IMPORT = {
    "allocator": set(),
    "errors": set(),
    "files": set(),
    "folder_lock": set(),
    "geometry": set(),
    "interrupts": set(),
    "mesh": set(),
    "name_map": set(),
    "npz_file": set(),
    "processes": set(),
    "progress": set(),
    "setting_bounds": set(),
    "scene": set(),
    "html_report": set(),
    "kernels": set(),
    "attention": KERNELS,
    "layers": ATTENTION,
    "backbones": LAYERS,
    "precision": {"kernels.fp8", "layers.fp8"},
    "losses": {"backbones.base"},
    "metrics": {"backbones.base"},
    "weights": BACKBONES | {"precision"},
    "data": set(),
    "exports": {"data", "html_report", "scene"},
    "refine": {"data", "scene"},
    "viewer": {"exports", "scene"},
    "service": {"data", "exports", "scene", "viewer"},
    "distillation": MODELS,
    "deploy": MODELS | {"distillation"},
    "models": MODELS | {"deploy", "distillation"},
    "training": WORK,
    "small_teacher": MODELS | {"training"},
    "evaluation": WORK | {"refine"},
    "infer": WORK | OUTPUT,
    "long_video": WORK | OUTPUT | {"infer"},
    "benchmarking": WORK | OUTPUT | {"evaluation", "infer"},
    "experiment": RUNS,
    "recipes": RUNS,
    "runs": RUNS | {"recipes"},
    "api": RUNS | {"runs"},
    "cli": RUNS | {"runs"},
    "main": RUNS | {"cli", "runs"},
    "__main__": {"cli"},
    "__init__": RUNS | {"api"},
}
# What may stand at the top of a module: all that `import lite3r_jax` may need.
AT_TOP = {PACKAGE, "jax", "flax", "numpy", "ml_dtypes", "safetensors"} | sys.stdlib_module_names
# Modules of a room that are loaded by name may need more.
AT_TOP_OF = {"recipes": {"ml_collections"}, "service": {"starlette"}, "kernels": {"triton"}}
NOWHERE = {"torch", "torchvision", "tests", "configs", "tools"}


class _Imports(ast.NodeVisitor):
    """Every module that a source imports: (dotted name, line, whether it runs on import)."""

    def __init__(self, package: list[str]):
        self.package = package  # of the module, for relative imports
        self.deferred = 0  # inside a function or an `if TYPE_CHECKING:`
        self.imports: list[tuple[str, int, bool]] = []

    def _add(self, name: str, node: ast.AST) -> None:
        self.imports.append((name, node.lineno, not self.deferred))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level:
            parents = self.package[: len(self.package) - node.level + 1]
            base = ".".join(parents + ([node.module] if node.module else []))
        else:
            base = node.module or ""
        for alias in node.names:
            self._add(f"{base}.{alias.name}", node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in ("import_module", "__import__") and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                self._add(target.value, node)
        self.generic_visit(node)

    def _defer(self, node: ast.AST) -> None:
        self.deferred += 1
        self.generic_visit(node)
        self.deferred -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _defer

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).rpartition(".")[2] != "TYPE_CHECKING":
            self.generic_visit(node)
            return
        self.deferred += 1
        for child in node.body:
            self.visit(child)
        self.deferred -= 1
        for child in node.orelse:
            self.visit(child)


def violations(path: str, source: str) -> list[str]:
    """What is wrong with the imports of one module; path: "lite3r_jax/room/file.py"."""
    parts = list(Path(path).with_suffix("").parts)
    room = parts[1]
    if room not in MAY_IMPORT:
        return [f"{path}: room {room!r} is not in the table of rooms"]
    allowed = MAY_IMPORT[room] | LEAVES | {room, "__version__"}
    visitor = _Imports(parts[:-1])
    visitor.visit(ast.parse(source))
    wrong = []
    for name, line, at_top in visitor.imports:
        head, _, inside = name.partition(".")
        where = f"{path}:{line}: "
        if head in NOWHERE:
            wrong.append(f"{where}{head} must not be imported by the package")
        elif head == PACKAGE:
            if not any(f"{inside}.".startswith(f"{target}.") for target in allowed):
                wrong.append(f"{where}room {room!r} must not import {name}")
        elif at_top and head not in AT_TOP | AT_TOP_OF.get(room, set()):
            wrong.append(f"{where}import {head} inside the function that uses it")
    return wrong


def modules() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def test_imports_run_one_way():
    assert len(modules()) > 10
    wrong = []
    for module in modules():
        wrong += violations(str(module.relative_to(ROOT)), module.read_text())
    assert not wrong, "\n".join(wrong)


def test_direction_table_has_no_cycle():
    order = []
    waiting = dict(MAY_IMPORT)
    while waiting:
        free = [
            room
            for room, targets in waiting.items()
            if not {target.partition(".")[0] for target in targets} & (waiting.keys() - {room})
        ]
        assert free, f"these rooms import each other: {sorted(waiting)}"
        order += free
        for room in free:
            del waiting[room]
    assert order.index("kernels") < order.index("attention") < order.index("layers")
    assert order.index("layers") < order.index("backbones") < order.index("weights")
    assert order.index("weights") < order.index("distillation") < order.index("training")
    assert order.index("infer") < order.index("main")


@pytest.mark.parametrize(
    "path,source",
    [
        ("layers/block.py", "from lite3r_jax.backbones.vggt import VGGT"),
        ("layers/block.py", "from lite3r_jax import backbones"),
        ("layers/block.py", "import lite3r_jax.backbones"),
        ("layers/block.py", "from ..backbones import vggt"),
        ("layers/block.py", "from .. import backbones"),
        ("layers/block.py", "def f():\n    from lite3r_jax.training import loop"),
        ("layers/block.py", "from lite3r_jax import load"),
        ("attention/strategy.py", "from lite3r_jax.layers.rope import rope"),
        ("data/views.py", "from lite3r_jax.layers.rope import rope"),
        ("exports/ply.py", "from lite3r_jax.backbones.vggt import VGGT"),
        ("precision/storage.py", "from lite3r_jax.kernels.sla import api"),
        ("geometry.py", "from lite3r_jax.kernels.sla import api"),
        ("kernels/sla/api.py", "from lite3r_jax.attention.strategy import AttentionStrategy"),
        ("backbones/vggt/model.py", "from lite3r_jax.weights.load import load"),
        ("infer.py", "from lite3r_jax.main import main"),
        ("weights/load.py", "def f():\n    import torch"),
        ("weights/load.py", "def f():\n    from torch.nn import Linear"),
        ("weights/load.py", "import importlib\ntorch = importlib.import_module('torch')"),
        ("main.py", "from lite3r_jax.recipes import vggt"),
        ("main.py", "from tools.benchmark import latency"),
        ("training/loop.py", "import tests.conftest"),
        ("data/images.py", "from PIL import Image"),
        ("data/pipeline/iterator.py", "class A:\n    import grain"),
        ("data/batches.py", "try:\n    import grain\nexcept ImportError:\n    grain = None"),
        ("infer.py", "import tqdm"),
        ("utils.py", "import numpy"),
    ],
)
def test_checker_sees_the_violation(path, source):
    assert len(violations(f"{PACKAGE}/{path}", source)) == 1


@pytest.mark.parametrize(
    "path,source",
    [
        ("layers/block.py", "from lite3r_jax.attention.plan import Plan\nimport jax.numpy as jnp"),
        ("layers/block.py", "from lite3r_jax.layers import mlp\nfrom . import rope"),
        ("data/images.py", "def f():\n    from PIL import Image"),
        ("data/images.py", "import typing\nif typing.TYPE_CHECKING:\n    import PIL"),
        ("exports/ply.py", "from lite3r_jax.scene import Scene"),
        ("precision/rules.py", "from lite3r_jax.kernels.fp8.api import quantize"),
        ("distillation.py", "from lite3r_jax import backbones, errors, geometry"),
        ("weights/manifest.py", "def f():\n    from lite3r_jax import __version__"),
        ("__init__.py", "from lite3r_jax.weights.load import load"),
    ],
)
def test_checker_accepts_the_direction(path, source):
    assert violations(f"{PACKAGE}/{path}", source) == []


def test_import_needs_only_the_core_packages():
    program = textwrap.dedent("""
        import importlib.abc, sys

        BLOCKED = {"PIL", "cv2", "grain", "huggingface_hub", "ml_collections", "orbax",
                   "pi_heif", "psutil", "pycolmap", "python_multipart", "skimage", "starlette",
                   "torch", "tqdm", "trimesh", "uvicorn", "viser"}

        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in BLOCKED:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Refuse())
        import lite3r_jax
        from lite3r_jax import load
        import lite3r_jax.data.images, lite3r_jax.main
        assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
        print(lite3r_jax.__version__)
    """)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(".") == 2


def test_import_needs_no_lowering_of_kernels_that_jax_may_remove():
    program = textwrap.dedent("""
        import sys

        for name in ("triton", "mosaic_gpu"):
            sys.modules[f"jax.experimental.pallas.{name}"] = None  # its import raises ImportError
        import lite3r_jax, lite3r_jax.main
        import jax
        import jax.numpy as jnp
        from lite3r_jax.attention.sla import SLA
        from lite3r_jax.kernels.block_map.api import block_map
        from lite3r_jax.kernels import proofs
        from lite3r_jax.kernels.fp8.fused import OPERATOR, Product
        from lite3r_jax.kernels.jax_triton_call import unavailable
        from lite3r_jax.kernels.sla.api import OPERATOR as SLA_OPERATOR
        from lite3r_jax.kernels.sla.limits import SlaCall

        gpu = jax.sharding.AbstractDevice("NVIDIA H200", num_cores=None, platform="cuda")
        mesh = jax.sharding.AbstractMesh((), (), abstract_device=gpu)
        x = jnp.zeros((1, 64, 1, 64))
        settings = {"q_block": 64, "k_block": 64, "top": 1, "implementation": "triton"}
        with jax.sharding.use_abstract_mesh(mesh):
            for call in (
                lambda: block_map(x, x, **settings),
                lambda: OPERATOR.choose("triton", Product(128, 128, 128, jnp.bfloat16)),
                lambda: SLA(implementation="triton").describe("bfloat16", 64),
            ):
                try:
                    call()
                except ValueError as error:
                    print(error)
            call = SlaCall("block", 64, "bfloat16", 128, 64)
            with proofs.assumed():  # so that nothing but the lowering is missing
                chosen = {SLA_OPERATOR.choose("auto", call) for _ in range(2)}
        assert chosen == {"blocked" if unavailable() else "jax_triton"}
    """)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    refusals = run.stdout.splitlines()
    assert len(refusals) == 3
    [said] = [line for line in run.stderr.splitlines() if line.startswith("sla: ")]
    for name in ("mosaic", "triton"):
        assert "runs; " in said and f"'{name}' cannot: jax" in said
    for line in refusals:
        assert "'triton' cannot run this: jax" in line and "has no Triton lowering" in line
        assert line.endswith(" can")
