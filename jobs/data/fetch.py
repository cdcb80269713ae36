"""Fetch an annotated Parquet set from a disk or from object storage: records stream, images become files, in the format
of `zr_ray/data/annotations.py`.

    python jobs/data/fetch.py s3://bucket/set DATA
    python jobs/data/fetch.py /mnt/nfs/set/train.parquet DATA
    python jobs/data/index.py DATA                          # then decode all images once, and remember

The source is one Parquet file or a folder of them; `image` is a path beside the file, the image's bytes, or the column
type of the `datasets` library (`zr_ray/data/fetch.py`). Protocols are fsspec's: s3:// needs s3fs, gs:// gcsfs; keys
and addresses are theirs to find. Nothing is decoded, and memory does not grow with the set.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zr_ray.data.fetch import fetch_set
from zr_ray.errors import ZrRayError
from zr_ray.run.observe import say


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="path or URL of a Parquet file, or of a folder with some")
    parser.add_argument("data", type=Path, help="folder to write; made if it is not there, refused if it holds a set")
    args = parser.parse_args(argv)
    try:
        count = fetch_set(args.source, args.data, say)
    except ZrRayError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1
    say(f"wrote {count} records to {args.data.absolute()}; next: python jobs/data/index.py {args.data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
