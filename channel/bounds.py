"""Types of configuration values with their bounds, and how pydantic checks them."""

from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field

# "3" and True are no numbers, nor are infinity and NaN; a name that is not known is refused.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def _plain(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return tuple(value) if isinstance(value, list) else value


T = TypeVar("T")
NUMPY = BeforeValidator(_plain)  # NumPy's numbers are numbers; its arrays, and lists, are tuples
Several = Annotated[tuple[T, ...], NUMPY]
Number = Annotated[float, NUMPY]
Positive = Annotated[float, Field(gt=0), NUMPY]
NonNegative = Annotated[float, Field(ge=0), NUMPY]
Share = Annotated[float, Field(ge=0, le=1), NUMPY]
Decibel = Annotated[float, Field(ge=-300, le=300), NUMPY]
Whole = Annotated[int, NUMPY]
Count = Annotated[int, Field(ge=1), NUMPY]
CountOrZero = Annotated[int, Field(ge=0), NUMPY]
