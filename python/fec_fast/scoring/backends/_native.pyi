from collections.abc import Sequence

threads: str
cuda_left_out: str

def entropies(
    layers: Sequence[tuple[int, str, bool, int, int, int, int, int, int, int, int]],
    results: Sequence[int],
    *,
    compress: str,
    entropy: str,
    axis: str,
    tau: float,
    tau_scale: float,
    threads: int,
    instruction_set: str = "",
    in_float64: bool = False,
) -> int: ...
def instruction_sets() -> list[tuple[str, bool]]: ...
def choice_of_instruction_set() -> tuple[str, dict[str, float]]: ...
