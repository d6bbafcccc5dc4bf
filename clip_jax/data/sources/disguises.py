"""Files that are not the data that their names promise, told by their first bytes."""

from __future__ import annotations

_PACKED = {
    **{b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"(\xb5/\xfd": "unzstd"},
    b"PK\x03\x04": "unzip",
}
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_LFS = b"version https://git-lfs"
_PAGES = (b"<!doctype html", b"<html")
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n")
_PARQUET = b"PAR1"


def packed(start: bytes, end: str) -> str:
    """Returns why a file must be unpacked or fetched first, and how; empty if it need not be.

    Args:
      start: the first bytes of the file.
      end: the ending of its name, such as `.tar`.
    """
    if end in _SPREADSHEETS:
        return "is a spreadsheet: save it as .csv"
    if how := next((how for magic, how in _PACKED.items() if start.startswith(magic)), ""):
        return f"is compressed, and so has no random access: {how} it"
    if start.startswith(_LFS):
        return f"is a pointer of Git LFS, not the {end.lstrip('.') or 'file'}: git lfs pull"
    return ""


def disguise(start: bytes, end: str) -> str:
    """Returns what is wrong with a file and what to do; empty if nothing is known to be wrong.

    The arguments are those of `packed`.
    """
    if why := packed(start, end):
        return why
    if start.lstrip()[:20].lower().startswith(_PAGES):
        return "is a web page, not the data: fetch it again"
    if start.startswith(_PICTURES):
        return "is an image: give the folder that holds it"
    if start.startswith(_PARQUET) and end != ".parquet":
        return "is Parquet: its name must end in .parquet, and files of one kind are given together"
    return ""
