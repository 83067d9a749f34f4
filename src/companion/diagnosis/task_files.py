"""Tasks from a file, as arguments of :func:`companion.diagnosis.diagnose`."""

from pathlib import Path
from typing import Any

import pandas as pd

from companion import archives
from companion.checks import require
from companion.errors import DataError, MissingData

_MOMENTS, _SAMPLES, _MORE = ("covariances", "optima"), ("x", "y"), ("weights", "groups")
_MOST = 2**30  # bytes of the arrays or of the table: more is a matter for a program of one's own


def read(path: Path, *, task: str = "task", target: str = "y") -> dict[str, Any]:
    """The tasks in a file. An ``.npz`` has arrays ``covariances`` and ``optima``, or ``x`` [task,
    sample, d] and ``y`` [task, sample], and maybe ``weights`` and ``groups`` [task]. A ``.csv`` has
    a row a sample, with the column ``task`` that says of which one, ``target`` for its label, and
    features in all the others. Neither holds more than 1 GiB. DataError: no such file
    (MissingData), too large a one, or not one of these."""
    if not path.is_file():
        raise MissingData(f"{path} must be a file, got none there; name an .npz or a .csv file")
    kinds = {".npz": lambda: _arrays(path), ".csv": lambda: _table(path, task, target)}
    require(path.suffix in kinds, str(path), "end in .npz or .csv", path.suffix or "no ending",
            "see companion diagnose --help")
    return kinds[path.suffix]()


def _large(path: Path, size: int) -> DataError:
    return DataError(f"{path} must hold at most {archives.mebibytes(_MOST)}, got "
                     f"{archives.mebibytes(size)}; take fewer tasks or samples, or give arrays to "
                     "companion.diagnose")


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            sizes = archives.sizes(file)
            wanted = [name for name in (*_MOMENTS, *_SAMPLES, *_MORE) if name in sizes]
            if (total := sum(sizes[name] for name in wanted)) > _MOST:
                raise _large(path, total)
            held = archives.read(file, wanted, most=_MOST)
    except DataError:
        raise
    except Exception as error:  # a damaged archive raises zlib's, zipfile's, even tokenize's own
        raise DataError(f"{path} must be an .npz archive of numbers, got one that cannot be read "
                        f"({error}); write it with numpy.savez") from error
    more = {name: held[name] for name in _MORE if name in held}
    for names in (_MOMENTS, _SAMPLES):
        if set(names) <= held.keys():
            break
    else:
        raise DataError(f"{path} must hold covariances and optima, or x and y, got "
                        f"{', '.join(sizes) or 'nothing'}; rename its arrays")
    if names == _MOMENTS:
        return {name: held[name] for name in names} | more
    x, y = held["x"], held["y"]
    require(x.ndim == 3 and y.shape == x.shape[:2], f"x and y of {path}",
            "be [task, sample, d] and [task, sample]", (x.shape, y.shape), "stack one set per task")
    return {"data": list(zip(x, y, strict=True))} | more


def _table(path: Path, task: str, target: str) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _MOST:
            raise _large(path, size)
        table = pd.read_csv(path)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # which pandas' own errors are
        raise DataError(f"{path} must be a table with a header, got one that cannot be read "
                        f"({error}); write it as comma-separated values") from error
    for option, column in (("task", task), ("target", target)):
        if column not in table:
            raise DataError(f"{path} must have the column {column!r}, got "
                            f"{', '.join(map(str, table.columns))}; name it with --{option}")
    require(len(table) > 0, f"the rows of {path}", "be one or more", 0, "it has a header alone")
    require(task != target, "task and target", "be two columns", repr(task), "name both")
    nameless = int(table[task].isna().sum())
    require(nameless == 0, f"the column {task!r} of {path}", "name a task in every row",
            f"none in {nameless} of {len(table)}", "fill them or drop the rows")
    features = table.columns.drop([task, target])
    require(len(features) > 0, f"the columns of {path}", "hold a feature or more", 0,
            "only the task and the target are there")
    for column in (*features, target):
        if table[column].dtype.kind not in "iufb":
            raise DataError(f"{path} must have numbers in the column {column!r}, got "
                            f"{table[column].iloc[0]!r}; leave it out, or encode it")
    return {"data": [(rows[features].to_numpy(float), rows[target].to_numpy(float))
                     for _, rows in table.groupby(task, sort=False)]}
