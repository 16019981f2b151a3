"""Pictures per second of whole networks beside torchvision and Keras, and how fast weights load: see README.md.

Every framework runs in a process of its own, the worker, which stays for the whole run and sleeps on its standard input
while others are timed. The driver and the workers talk in lines of JSON. What a worker imports stands in its function:
the peers' environment need not have tljax or rich.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[1]
CLASSES = 1000
VGG_HEAD = {"pool": "flatten", "pool_size": 7, "hidden": (4096, 4096)}
KERAS = {"vgg16": "VGG16", "resnet50": "ResNet50", "densenet121": "DenseNet121", "inception_v3": "InceptionV3"}
# Keras' own variants, for a comparison of like with like; torchvision does not have them.
KERAS |= {"resnet50_v1": "ResNet50", "densenet121_keras": "DenseNet121", "inception_v3_keras": "InceptionV3"}


# ----------------------------------------------------------------------------------------------------------- workers
# Each function takes a task (model, train, dtype, size, batch) and returns {variant: make}. make() returns a step, to
# do one batch and wait for it, and the FLOPs of the step where the framework counts them.


def matmul(task):
    """The measured peak: a product of large matrices, in the precision that the networks get."""
    import jax
    import jax.numpy as jnp

    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), task["dtype"])
    product = jax.jit(jnp.matmul)
    return {"jit": lambda: (lambda: product(a, a).block_until_ready(), 2 * side**3)}


def tljax(task):
    """This project: pure functions of flat leaves, as in tljax/train/step.py."""
    import jax.numpy as jnp
    from flax import nnx

    from tljax import models
    from tljax.models import state as leaves_of

    head = VGG_HEAD if has_dense_layers(task) else {}
    dtype = jnp.dtype(task["dtype"])
    model = models.build(
        task["model"], num_classes=CLASSES, image_size=task["size"], dtype=dtype, rngs=nnx.Rngs(0), **head
    )
    graphdef, params, stats = leaves_of.split(model)

    def call(params, stats, x, train):
        model = leaves_of.merge(graphdef, params | stats)
        return model(x, train=train), leaves_of.stats_of(model)

    return {"jit": lambda: jax_step(task, call, params, stats)}


def keras_jax(task):
    """Keras 3 on JAX: the stateless call, in the same step as ours."""
    model = keras_model(task, "jax")
    params = [v.value for v in model.trainable_variables]
    stats = [v.value for v in model.non_trainable_variables]

    def call(params, stats, x, train):
        return model.stateless_call(params, stats, x, training=train)

    return {"jit": lambda: jax_step(task, call, params, stats)}


def jax_step(task, call, params, stats):
    """The step of `call(params, stats, images, train) → (logits, new stats)`, and its FLOPs.

    The FLOPs are XLA's count of the program before optimization: 2 per multiply-add of convolutions and products where
    they do not touch padding, 1 per elementwise operation. It leaves out transcendental functions (XLA counts them
    apart) and whatever the compiler does otherwise than written: fusion that computes again, Winograd, custom calls.
    """
    import jax
    import jax.numpy as jnp

    images, labels = batch_of(task)
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def loss_of(params, stats, x, y):
        logits, stats = call(params, stats, x, True)
        logs = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.take_along_axis(logs, y[:, None], axis=1).mean(), stats

    def infer(params, stats, x, y):
        return call(params, stats, x, False)[0]

    # Statistics are returned, or XLA would drop their updates, which the peers do.
    program = jax.jit(jax.value_and_grad(loss_of, has_aux=True) if task["train"] else infer)
    flops = program.lower(params, stats, images, labels).cost_analysis()["flops"]
    return lambda: jax.block_until_ready(program(params, stats, images, labels)), flops


def keras_tensorflow(task):
    """Keras 3 on TensorFlow: compiled by XLA, and as a plain graph, which has TensorFlow's oneDNN kernels."""
    model = keras_model(task, "tensorflow")
    import tensorflow as tf

    images, labels = map(tf.constant, batch_of(task))

    def train(x, y):
        with tf.GradientTape() as tape:
            logits = tf.cast(model(x, training=True), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        return loss, tape.gradient(loss, model.trainable_weights)

    def infer(x, y):
        return model(x, training=False)

    def make(compiled):
        function = tf.function(train if task["train"] else infer, jit_compile=compiled)
        last = (lambda out: out[1][0]) if task["train"] else (lambda out: out)
        return lambda: last(function(images, labels)).numpy(), None  # reading a result waits for it

    return {"jit_compile": lambda: make(True), "graph": lambda: make(False)}


def keras_model(task, backend):
    """A network of keras.applications, with the same head as in the other frameworks."""
    os.environ["KERAS_BACKEND"] = backend  # of a process, set before the first import
    import keras

    keras.backend.clear_session()
    keras.config.set_dtype_policy("mixed_bfloat16" if task["dtype"] == "bfloat16" else "float32")
    make = getattr(keras.applications, KERAS[task["model"]])
    shape = (task["size"], task["size"], 3)
    if has_dense_layers(task):
        return make(weights=None, input_shape=shape, classes=CLASSES, classifier_activation=None)
    trunk = make(weights=None, input_shape=shape, include_top=False, pooling="avg")
    return keras.Model(trunk.input, keras.layers.Dense(CLASSES)(trunk.output))


def torch(task):
    """PyTorch with torchvision's architecture, eager in two layouts and compiled."""
    import torch
    import torchvision

    torch._dynamo.reset()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # JAX multiplies float32 in TF32 there too
    # No dropout, as in the other frameworks, and no auxiliary classifier.
    options = {"vgg16": {"dropout": 0.0}, "inception_v3": {"aux_logits": False, "dropout": 0.0, "init_weights": False}}
    net = getattr(torchvision.models, task["model"])(weights=None, **options.get(task["model"], {}))
    if task["model"].startswith("vgg") and not has_dense_layers(task):
        net.avgpool, net.classifier = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(512, CLASSES)
    images, labels = (torch.from_numpy(array).to(device) for array in batch_of(task))
    labels = labels.long()

    def make(layout, compiled=False):
        model = copy.deepcopy(net).to(device, memory_format=layout).train(task["train"])
        x = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        call = torch.compile(model) if compiled else model

        def step():
            with torch.autocast(device, torch.bfloat16, enabled=task["dtype"] == "bfloat16"):
                with torch.inference_mode(not task["train"]):
                    logits = call(x)
                loss = torch.nn.functional.cross_entropy(logits, labels) if task["train"] else None
            if task["train"]:
                model.zero_grad(set_to_none=True)
                loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return step, None

    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    eager = {name: functools.partial(make, layout) for name, layout in layouts.items()}
    if not task["torch_compile"]:
        return eager
    return eager | {f"compile, {name}": functools.partial(make, layout, True) for name, layout in layouts.items()}


def batch_of(task):
    """Images [B, H, W, 3] and labels [B]; their values do not matter."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.standard_normal((task["batch"], task["size"], task["size"], 3), np.float32)
    return images, rng.integers(0, CLASSES, task["batch"]).astype(np.int32)


def has_dense_layers(task) -> bool:
    """VGG's dense layers fit 224 pixels alone: elsewhere all frameworks average the map and have one dense layer."""
    return task["model"].startswith("vgg") and task["size"] == 224


class Peer(NamedTuple):
    """A framework: its variants of a task, and the modules it cannot do without."""

    variants: Callable[[dict], dict[str, Callable]]
    modules: tuple[str, ...]


PEERS = {
    "matmul": Peer(matmul, ("jax",)),
    "tljax": Peer(tljax, ("jax", "flax", "tljax")),
    "torch": Peer(torch, ("torch", "torchvision")),
    "keras-tensorflow": Peer(keras_tensorflow, ("tensorflow", "keras")),
    "keras-jax": Peer(keras_jax, ("jax", "keras")),
}


def work(peer: str, threads: int) -> None:
    """A worker: answers each line of standard input with one line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    if hasattr(os, "sched_setaffinity"):  # the one limit on threads that every framework obeys
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["KERAS_BACKEND"] = peer.removeprefix("keras-")  # read at the first import
    sys.path.insert(0, str(REPO))
    # The module describes the shapes of torchvision's compiled operators, which the networks do not use, and fails
    # where these are missing or were built for another PyTorch.
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    answer = Worker(peer).answer
    for line in sys.stdin:
        try:
            reply = answer(**json.loads(line))
        except ModuleNotFoundError as error:
            reply = {"missing": error.name}
        except Exception as error:
            reply = {"error": shortened(error)}
        print(json.dumps(reply), file=answers, flush=True)


class Worker:
    """What a worker holds: the fastest variant's step of the latest task."""

    def __init__(self, peer: str):
        self.peer, self.step, self.batch = PEERS[peer], None, 0

    def answer(self, do: str, **request) -> dict:
        """Answers one request of the driver."""
        return getattr(self, do)(**request)

    def hello(self) -> dict:
        """The versions, or ModuleNotFoundError; and the device."""
        modules = [importlib.import_module(name) for name in self.peer.modules]
        first = modules[0]
        device = {
            "jax": lambda: first.default_backend(),
            "torch": lambda: "gpu" if first.cuda.is_available() else "cpu",
            "tensorflow": lambda: "gpu" if first.config.list_physical_devices("GPU") else "cpu",
        }[first.__name__]()
        named = [f"{m.__name__} {m.__version__}" for m in modules if hasattr(m, "__version__")]
        return {"versions": ", ".join(named), "device": device}

    def prepare(self, **task) -> dict:
        """Compiles every variant, tries each for a moment and keeps the fastest."""
        self.step, self.batch = None, task["batch"]
        gc.collect()
        best, trials, errors = {}, {}, {}
        for name, make in self.peer.variants(task).items():
            try:
                step, flops = make()
                step()  # compiles
                step()
                trials[name] = self.batch * repeat(step, task["trial"])
            except Exception as error:  # torch.compile wants a C++ compiler, and XLA lacks some of TensorFlow
                errors[name] = shortened(error)
                continue
            if trials[name] == max(trials.values()):
                self.step, best = step, {"variant": name, "flops": flops and flops / self.batch}
        if self.step is None:
            raise RuntimeError("; ".join(errors.values()))
        return best | {"trials": trials, "errors": errors}

    def run(self, seconds: float) -> dict:
        """Pictures per second over a while."""
        return {"rate": self.batch * repeat(self.step, seconds)}


def repeat(step: Callable[[], object], seconds: float) -> float:
    """Steps per second over at least `seconds` and one step."""
    count, start = 0, time.perf_counter()
    while True:
        step()
        count, passed = count + 1, time.perf_counter() - start
        if passed >= seconds:
            return count / passed


def shortened(error: Exception) -> str:
    """An error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# ------------------------------------------------------------------------------------------------------------ driver


class Failed(Exception):
    """A worker could not do what it was asked."""


class Process:
    """A worker seen from the driver."""

    def __init__(self, peer: str, python: str, env: dict[str, str], threads: int, logs: Path):
        self.peer, self.log = peer, logs / f"{peer}.log"
        self.process = subprocess.Popen(
            [python, __file__, "--worker", peer, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), env=env, text=True,
        )  # fmt: skip

    def ask(self, do: str, **request) -> dict:
        """Sends a request and waits for the answer."""
        try:
            print(json.dumps({"do": do} | request), file=self.process.stdin, flush=True)
            reply = json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise Failed(f"the worker died: {last[:200]}") from None
        if "missing" in reply:
            raise Failed(f"not installed ({reply['missing']})")
        if "error" in reply:
            raise Failed(reply["error"])
        return reply

    def close(self) -> None:
        """Ends the worker: at the end of its input, or by force if it is in the middle of something."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def compare(args, console) -> dict:
    """Times every model in every framework, in turns, and returns what goes into the JSON."""
    threads = str(args.threads)
    # PyTorch's threads spin while they wait, and its backward pass has a second team of them: with any other load on
    # the machine it gets several times slower. Set OMP_WAIT_POLICY outside to have it otherwise.
    env = {"OMP_WAIT_POLICY": "PASSIVE", "TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ | {"OMP_NUM_THREADS": threads}
    # Several frameworks share one GPU: none may take its memory for itself.
    env |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    cpu = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    env |= cpu if args.devices == "cpu" else {}
    cells = list(itertools.product(args.models, args.modes, args.dtypes))
    workers, about, rows = {}, {}, []
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
        progress = stack.enter_context(Progress(*columns, console=console, transient=True))
        bar = progress.add_task("starting", total=None)
        for peer in ("matmul", "tljax", *args.peers):
            python = sys.executable if peer in ("matmul", "tljax") else args.peer_python
            worker = Process(peer, python, env, args.threads, logs)
            stack.callback(worker.close)
            try:
                about[peer] = worker.ask("hello")
                workers[peer] = worker
            except Failed as error:
                about[peer] = {"versions": str(error)}
            if peer == "tljax" and about[peer].get("device") == "cpu":
                env |= cpu  # without a GPU for JAX the peers have none either
        progress.update(bar, total=len(cells) * len(workers) * (1 + args.rounds))
        for model, mode, dtype in cells:
            task = {"model": model, "train": mode == "train", "dtype": dtype, "size": args.size, "batch": args.batch}
            task |= {"trial": min(args.seconds, 0.5), "torch_compile": args.torch_compile}
            cell, turns = {}, list(workers)
            for peer in workers:
                progress.update(bar, description=f"{model} {mode} {dtype}: {peer} compiles")
                row = {"model": model, "mode": mode, "dtype": dtype, "peer": peer, "rates": []}
                try:
                    start = time.perf_counter()
                    done = workers[peer].ask("prepare", **task | ({"batch": 1} if peer == "matmul" else {}))
                    cell[peer] = row | done | {"prepare_seconds": time.perf_counter() - start}
                except Failed as error:
                    rows.append(row | {"error": str(error)})
                    turns.remove(peer)
                progress.advance(bar)
            for _ in range(args.rounds):
                for peer in turns:
                    progress.update(bar, description=f"{model} {mode} {dtype}: {peer} runs")
                    time.sleep(0.2)  # threads of the one before may spin for a while before they sleep
                    try:
                        cell[peer]["rates"].append(workers[peer].ask("run", seconds=args.seconds)["rate"])
                    except Failed as error:
                        cell[peer]["error"] = str(error)
                    progress.advance(bar)
                turns = turns[1:] + turns[:1]  # nobody always comes after the same one first in a round
            rows += cell.values()
    return {"settings": vars(args), "about": about, "rows": finish(rows)}


def finish(rows: list[dict]) -> list[dict]:
    """Adds best and median, the ratios of tljax to the peer, and the share of the best matmul of the whole run."""
    timed = [
        row | {"best": max(row["rates"]), "median": statistics.median(row["rates"])} for row in rows if row["rates"]
    ]
    peaks, ours = {}, {}
    for row in timed:
        if row["peer"] == "matmul":
            peaks[row["dtype"]] = max(peaks.get(row["dtype"], 0), row["best"] * row["flops"])
        if row["peer"] == "tljax":
            ours[cell_of(row)] = row
    for row in timed:
        if reference := ours.get(cell_of(row)):
            row |= {f"ratio_of_{which}": reference[which] / row[which] for which in ("best", "median")}
        if row["flops"] and row["dtype"] in peaks:
            row["share_of_peak"] = row["best"] * row["flops"] / peaks[row["dtype"]]
    return timed + [row for row in rows if not row["rates"]]


def cell_of(row: dict) -> tuple[str, str, str]:
    """What is compared with one another."""
    return row["model"], row["mode"], row["dtype"]


def show(found: dict, console) -> None:
    """The table, the peak, geometric means of the ratios, and the versions."""
    settings, rows, about = found["settings"], found["rows"], found["about"]
    title = "Pictures/s at {size}×{size} in batches of {batch}, {threads} threads, {rounds} rounds".format(**settings)
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, caption="GFLOP: per picture, as XLA counts. ratio: tljax/peer.")
    for i, heading in enumerate(("", "variant", "best", "median", "ratio", "GFLOP", "of peak")):
        table.add_column(heading, justify="left" if i < 2 else "right")
    order = {peer: place for place, peer in enumerate(about)}
    failures = {}
    for cell in itertools.product(settings["models"], settings["modes"], settings["dtypes"]):
        table.add_row(f"[bold]{' '.join(cell)}")
        of_cell = [row for row in rows if cell_of(row) == cell and row["peer"] != "matmul"]
        for row in sorted(of_cell, key=lambda row: order[row["peer"]]):
            if "error" in row:
                failures[row["error"]] = f"{row['peer']}, {' '.join(cell)}"
            if "best" not in row:
                table.add_row(f"  {row['peer']}", "failed")
                continue
            ratio = f"{row['ratio_of_best']:.2f}" if row["peer"] != "tljax" and "ratio_of_best" in row else ""
            counted = (f"{row['flops'] / 1e9:.2f}", f"{row.get('share_of_peak', 0):.0%}") if row["flops"] else ()
            table.add_row(
                f"  {row['peer']}", row["variant"], f"{row['best']:.2f}", f"{row['median']:.2f}", ratio, *counted
            )
        table.add_section()
    console.print(table)
    for error, where in failures.items():
        console.print(f"{where}: {error}", highlight=False, markup=False)
    for dtype in settings["dtypes"]:
        peaks = [row["best"] * row["flops"] for row in rows if (row["peer"], row["dtype"]) == ("matmul", dtype)]
        console.print(f"Peak: {max(peaks, default=0) / 1e9:.1f} GFLOP/s in a {dtype} matrix product")
    for peer, mode, dtype in itertools.product(settings["peers"], settings["modes"], settings["dtypes"]):
        key = (peer, mode, dtype)
        ratios = [r["ratio_of_best"] for r in rows if (r["peer"], *cell_of(r)[1:]) == key and "ratio_of_best" in r]
        if ratios:
            console.print(f"tljax/{peer}, {mode} {dtype}: {statistics.geometric_mean(ratios):.2f} (geometric mean)")
    for peer, facts in about.items():
        device = f" on {facts['device']}" if "device" in facts else ""
        console.print(f"{peer}: {facts['versions']}{device}", highlight=False)


# ------------------------------------------------------------------------------------------------------------ loading


def load(args, console) -> dict:
    """Times the way from nothing to a model on its device in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = args.load or str(Path(folder) / "random.safetensors")
        if not args.load:
            call(sys.executable, __file__, "--load-step", "write", "--models", args.models[0], "--load", path)
        rounds = []
        for _ in range(args.rounds):
            command = (sys.executable, __file__, "--load-step", "read", "--models", args.models[0], "--load", path)
            rounds.append(json.loads(call(*command)))
            console.print(f"{args.models[0]}: " + ", ".join(f"{k} {v:.3f}" for k, v in rounds[-1].items()))
    return {"settings": vars(args), "rounds": rounds}


def call(*command: str) -> str:
    """The output of a command."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def load_step(step: str, name: str, path: str) -> None:
    """In a process of its own: writes random weights in torchvision's names, or reads a file and prints the times."""
    times, last = {}, time.perf_counter()

    def lap(what: str) -> None:
        nonlocal last
        now = time.perf_counter()
        times[f"{what} s"], last = now - last, now

    sys.path.insert(0, str(REPO))
    import jax
    from flax import nnx

    from tljax import models, weights
    from tljax.weights.files import write_safetensors
    from tljax.weights.rules import layouts

    lap("import")
    jax.devices()
    lap("start device")
    head = VGG_HEAD if name.startswith("vgg") else {}
    model = models.build(name, num_classes=CLASSES, rngs=nnx.Rngs(0) if step == "write" else None, **head)
    lap("build")
    if step == "write":
        write_safetensors(path, weights.export(model, layouts(model.family, model.config)["torchvision"]))
        return
    with Memory() as memory:
        last = time.perf_counter()
        weights.load(model, path)
        lap("load")
        jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
        lap("device ready")
    size = Path(path).stat().st_size
    ratios = {"peak memory / file": memory.peak / size, "memory kept / file": memory.kept / size}
    print(json.dumps(times | {"total s": sum(times.values())} | ratios | {"file MB": size / 1e6}))


class Memory:
    """Samples the anonymous memory of the process, without pages of mapped files: peak and end, less the start.

    Without Linux' /proc it is the high-water mark of all memory.
    """

    def __enter__(self) -> Memory:
        self.start = self.peak = self.now()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop.set()
        self.thread.join()
        end = self.now()
        self.peak, self.kept = max(self.peak, end) - self.start, end - self.start

    def watch(self) -> None:
        """Runs in the thread."""
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, self.now())

    @staticmethod
    def now() -> int:
        """Bytes."""
        try:
            status = Path("/proc/self/status").read_text()
            return 1024 * int(status.split("RssAnon:")[1].split()[0])
        except (OSError, IndexError):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """The command line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commas = {"type": lambda text: text.split(",")}
    parser.add_argument("--models", default=["vgg16", "resnet50", "densenet121", "inception_v3"], **commas)
    parser.add_argument("--modes", default=["infer", "train"], **commas)
    parser.add_argument("--dtypes", default=["float32"], help="float32,bfloat16 (torch: autocast)", **commas)
    parser.add_argument("--peers", default=["torch", "keras-tensorflow", "keras-jax"], **commas)
    parser.add_argument("--size", type=int, default=128, help="side of the pictures; VGG has its dense layers at 224")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--devices", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--torch-compile", action="store_true", help="try torch.compile too: minutes per network")
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch and keras")
    parser.add_argument("--json", help="file for all numbers")
    parser.add_argument("--load", nargs="?", const="", metavar="FILE", help="time loading weights instead")
    parser.add_argument("--load-step", choices=("write", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.threads)
    loading = args.load is not None
    if loading and args.models == parser.get_default("models"):
        args.models = ["resnet50"]
    if args.load_step:
        return load_step(args.load_step, args.models[0], args.load)
    if unknown := [peer for peer in args.peers if peer not in PEERS] + [m for m in args.models if m not in KERAS]:
        parser.error(f"unknown: {', '.join(unknown)}; peers: {', '.join(PEERS)}; models: {', '.join(KERAS)}")
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=120)
    found = (load if loading else compare)(args, console)
    if not loading:
        show(found, console)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
