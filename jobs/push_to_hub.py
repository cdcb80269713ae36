"""Send a trained judge (or generator) folder to a hub of models: what would be sent first, then the push.

    python jobs/push_to_hub.py --folder runs/latest/judge --repository you/your-judge --dry-run
    HF_TOKEN=... python jobs/push_to_hub.py --folder runs/latest/judge --repository you/your-judge

The repository is private unless --public is given. A dry run contacts nobody. Files that could run code when loaded,
symbolic links and hidden files are refused, not sent. Another hub: HF_ENDPOINT in the environment.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from zr_ray.errors import JudgeError, ZrRayError

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
HOW = "name the `judge` or `generator` folder of a finished run"


def files_to_send(folder: Path) -> list[Path]:
    """Files of a judge or generator folder, sorted. Raises JudgeError for a folder that is none, or that holds what
    should not be published."""
    if not any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        raise JudgeError(f"{folder} must hold config.json or model_index.json, it has neither; {HOW}")
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = [str(path.relative_to(folder)) for path in found]
    refused = [
        name
        for name, path in zip(names, found, strict=True)
        if path.is_symlink() or path.suffix.lower() in PICKLES or any(part.startswith(".") for part in Path(name).parts)
    ]
    if refused:
        raise JudgeError(
            f"{folder} holds pickles, links or hidden files, which are not published: {', '.join(refused[:5])}; move"
            " them away"
        )
    if not any(path.suffix == ".safetensors" for path in found):
        raise JudgeError(f"{folder} must hold weights as safetensors, it has none; {HOW}")
    return found


def push(folder: Path, repository: str, private: bool, message: str) -> str:
    """Make the repository if it is not there and commit the folder; returns the commit's URL. Raises JudgeError with
    the hub's reason."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        sent = api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
    except LocalTokenNotFoundError:
        raise JudgeError("the hub needs a token with write access; set HF_TOKEN, or run `hf auth login`") from None
    except (HfHubHTTPError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise JudgeError(f"the hub did not take {repository}: {lines[0]}; nothing was changed here") from error
    return str(sent.commit_url)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 1, with one line, for a problem that the user can fix."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="`judge` or `generator` of a run folder")
    parser.add_argument("--repository", required=True, metavar="OWNER/NAME", help="where it goes")
    parser.add_argument("--public", action="store_true", help="a repository that is made is private without it")
    parser.add_argument("--message", default="Judge trained with zr_ray", help="of the commit (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be sent and stop; contacts nobody")
    args = parser.parse_args(argv)
    try:
        validate_repo_id(args.repository)
        if args.repository.count("/") != 1:
            raise JudgeError(f"--repository must be OWNER/NAME, got {args.repository}")
        found = files_to_send(args.folder)
        for path in found:
            print(f"{path.stat().st_size / 2**20:10.2f} MiB  {path.relative_to(args.folder)}")
        if not (args.folder / "README.md").is_file():
            print("note: no README.md (model card) in it; jobs/risd.py writes one for students")
        kind = "public" if args.public else "private"
        where = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{args.repository}"
        if args.dry_run:
            print(
                f"dry run: {len(found)} files would go to {where} ({kind} if it has to be made); nobody was contacted"
            )
            return 0
        print(f"sent: {push(args.folder, args.repository, not args.public, args.message)}")
    except (ZrRayError, HFValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
