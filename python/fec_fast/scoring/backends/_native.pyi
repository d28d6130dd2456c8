from collections.abc import Sequence

threads: str
cuda_left_out: str

def entropies(
    layers: Sequence[tuple[int, str, int, int, int, int, int, int, int, int, int]],
    *,
    compress: str,
    entropy: str,
    axis: str,
    tau: float,
    tau_scale: float,
    algorithm: str,
    threads: int,
    instruction_set: str = "",
) -> int: ...
def instruction_sets() -> list[tuple[str, bool]]: ...
