"""Which depths a CIFAR-style residual network can have; needs neither torch nor pydantic."""


def six_n_plus_two(depth: int) -> int:
    """Depth of a CIFAR-style residual network: three stages of n blocks of two layers, and two more.

    Raises:
        ValueError: If `depth` is no such number.
    """
    if depth < 8 or (depth - 2) % 6:
        below = max(8, depth - (depth - 2) % 6)
        raise ValueError(f"{depth} given; accepted: 6n+2, e.g. {below} or {below + 6}")
    return depth
