"""Work that is captured once as a CUDA graph and replayed; on other devices it runs as it is."""

import gc
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Generator, Tensor

# Takes and returns nothing, never waits for the device, and reads and writes, in place, tensors that outlive it.
Work = Callable[[], None]

WARM_UPS = 3  # cuDNN chooses its kernels, libraries make their workspaces


class Graphs:
    """What one trial repeats, by key.

    Capturing turns hundreds of launches into one, and needs no change in the work. All graphs take
    their memory from one pool, since none reads what another leaves there and no two run at once. They
    are freed together: freeing one of several graphs of a stream may free a workspace the others use.

    Args:
        device: Where the work runs.
        generators: All that the work draws from. Replays advance them like the work itself would.
        capture: False replays the work as it is on CUDA too.
        time_kernels: Whether cuDNN times its kernels and takes the fastest, which needs the device to itself: beside
            others it takes one or another by chance. False takes those that it expects to be fast, always the same.
    """

    def __init__(
        self,
        device: torch.device,
        generators: Sequence[Generator] = (),
        capture: bool = True,
        time_kernels: bool = True,
    ) -> None:
        self.device, self.generators, self.time_kernels = device, tuple(generators), time_kernels
        self.captures = capture and device.type == "cuda"
        self.prepared: set[Hashable] = set()
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        if self.captures:
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def prepare(self, key: Hashable, work: Work, state: Iterable[Tensor]) -> None:
        """Makes `key` ready to run, unless it is; costs some runs of `work`, which leave nothing behind.

        Args:
            state: All tensors that `work` changes and whose values matter.
        """
        if key in self.prepared:
            return
        with self.unchanged(state) as restore:
            if self.captures:
                self.graphs[key] = self._captured(work, restore)
            else:
                work()
        self.prepared.add(key)

    def run(self, key: Hashable, work: Work) -> None:
        """Runs `work`, on the current stream: the graph that was captured for `key` where there is one."""
        graph = self.graphs.get(key)
        work() if graph is None else graph.replay()

    def unchanged(self, state: Iterable[Tensor]) -> AbstractContextManager[Callable[[], None]]:
        """Restores `state`, in place, and the generators when the body ends."""
        return unchanged(list(state), self.generators)

    def _captured(self, work: Work, restore: Callable[[], None]) -> torch.cuda.CUDAGraph:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        # One stream for warming up and capturing, since workspaces belong to streams.
        with torch.cuda.stream(self.stream), fastest_convolutions() if self.time_kernels else nullcontext():
            for _ in range(WARM_UPS):
                work()
                restore()
            graph = torch.cuda.CUDAGraph()
            if torch.__version__ < "2.14":  # later ones find the generators themselves
                for generator in self.generators:
                    graph.register_generator_state(generator)
            with no_garbage_collection(), torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                work()
        current.wait_stream(self.stream)
        return graph


@contextmanager
def unchanged(state: Sequence[Tensor], generators: Sequence[Generator]) -> Iterator[Callable[[], None]]:
    """Restores values, in place, and generators when the body ends, and whenever the body calls what it is given."""
    values = [tensor.detach().clone() for tensor in state]
    states = [generator.get_state() for generator in generators]

    @torch.no_grad()
    def restore() -> None:
        for tensor, value in zip(state, values, strict=True):
            tensor.copy_(value)
        for generator, drawn in zip(generators, states, strict=True):
            generator.set_state(drawn)

    try:
        yield restore
    finally:
        restore()


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """cuDNN times its kernels at each shape's first call and keeps the fastest, so runs may differ in rounding.

    First in the process: a shape that was met without this keeps the kernel that it got then.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collects now and not inside: freeing an earlier trial's graph would disturb a capture."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
