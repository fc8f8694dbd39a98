"""The demo: mirror a real tree, change it, damage the mirror, watch it proven wrong and made right.

Everything goes through the command line, as a user's would.  It works in a scratch folder on a copy of the
source, and takes all of it away again, also after an error or Ctrl-C: the server by its pid, then the
mounts, then the folder.  After a SIGKILL the scratch folder (its name is printed first) has to be removed
by hand: ``python -m rig.demo --discard FOLDER``.
"""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rig import scratch
from rig.compare import Comparer
from rig.served import Result, Served, ServedError, Volume, checked, command, end_children
from rig.story import StoryError, Teller, count, size

HIDDEN = b".mirrorkeep"
CANDIDATES = ("/usr/share", "/usr/lib", "/usr/lib/python3", "/usr/share/doc", "/usr/share/perl", "/etc")
MOST_ENTRIES, MOST_BYTES, LEAST_ENTRIES = 25_000, 400_000_000, 2_000


@dataclass
class Tree:
    """What a walk of a folder saw; ``files`` only holds single-linked regular files that are not empty."""

    top: str
    entries: int = 0
    size_bytes: int = 0
    files: list[str] = field(default_factory=list)


def survey(top: str, most_entries: int | None = None, most_bytes: int | None = None) -> Tree | None:
    """Count a folder; None when it is larger than asked for."""
    tree = Tree(top)
    for folder, _, names in os.walk(top):
        tree.entries += 1
        for name in names:
            path = os.path.join(folder, name)
            seen = os.lstat(path)
            tree.entries += 1
            if stat.S_ISREG(seen.st_mode):
                tree.size_bytes += seen.st_size
                if seen.st_size and seen.st_nlink == 1:
                    tree.files.append(os.path.relpath(path, top))
        if (most_entries and tree.entries > most_entries) or (most_bytes and tree.size_bytes > most_bytes):
            return None
    tree.files.sort()
    return tree


def choose_source() -> str:
    """Return $SRC, or the largest folder of this machine that is mirrored in some ten seconds."""
    if chosen := os.environ.get("SRC"):
        if not os.path.isdir(chosen):
            raise StoryError(f"SRC={chosen} is not a folder")
        return chosen
    below = sorted(str(path) for path in Path("/usr/share").iterdir() if path.is_dir())
    sizes = {}
    for top in (*CANDIDATES, *sorted(map(str, Path("/usr/lib").glob("python3.*"))), *below):
        if os.path.isdir(top) and not os.path.islink(top):
            tree = survey(top, MOST_ENTRIES, MOST_BYTES)
            if tree and tree.entries >= LEAST_ENTRIES:
                sizes[top] = tree.size_bytes
    if not sizes:
        raise StoryError("found no tree of thousands of files here; choose one with SRC=FOLDER")
    return max(sizes, key=lambda top: sizes[top])


@dataclass
class Demo:
    """The state of one telling."""

    folder: Path
    teller: Teller
    source: Path = field(init=False)
    served: Served = field(init=False)
    volume: Volume = field(init=False)
    tree: Tree = field(init=False)
    first_sent_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.source = self.folder / "source"

    # --- the acts, in order -------------------------------------------------------------------

    def copy_source(self) -> None:
        origin = choose_source()
        self.teller.step(f"A copy of {origin} to play with (the original is only read)")
        subprocess.run(["cp", "-a", "--reflink=auto", f"{origin}/.", str(self.source)], check=True)
        tree = survey(str(self.source))
        assert tree is not None
        if len(tree.files) < 40:
            raise StoryError(f"{origin} has too few files for this story; choose another with SRC=FOLDER")
        self.tree = tree
        self.teller.line(f"{count(tree.entries)} entries, {size(tree.size_bytes)}")

    def serve(self) -> None:
        driver = os.environ.get("DRIVER", "auto")
        self.teller.step("A storage server, TLS only, on a free port of this machine")
        room = 2 * self.tree.size_bytes + (1 << 30)
        self.served = Served(self.folder / "data", driver=driver, size=f"{room >> 20}M", limit_s=540)
        self.teller.command("store init data;", "mirrorkeep store serve data")
        self.served.create()
        seconds = self.served.start()
        self.volume = self.served.create_volume("demo")
        self.teller.line(f"listening after {seconds:.1f} s; the volume is {self.volume.url}")
        if scratch.mounts_below(self.served.data):
            self.teller.line("storage: btrfs on a loop device")
        else:
            self.teller.line("storage: a plain folder")

    def mirror(self) -> None:
        self.teller.step("The first mirror")
        done = self.sync()
        self.first_sent_bytes = int(done["bytes_sent"])
        self.teller.line(
            f"{count(done['entries'])} entries, {size(done['bytes_read'])} read, "
            f"{size(done['bytes_sent'])} sent, {done['seconds']:.1f} s"
        )
        self.teller.expect(done["failed"] == 0, "nothing was left out")
        self.teller.expect(done["verdict"] == "verified", "the server read everything back: verified", done)
        self.show_snapshots()
        self.compare("the server's copy is a plain folder, equal to the source", self.native)

    def change(self) -> None:
        self.teller.step("Life goes on: edits, new files, removals, a renamed folder")
        files = self.tree.files
        edited, removed = files[5::97][:20], files[11::101][:5]
        for name in edited:
            with open(self.source / name, "ab") as stream:
                stream.write(b"\na line more\n")
        for name in set(removed) - set(edited):
            os.unlink(self.source / name)
        for number in range(5):
            (self.source / f"new file {number}").write_text(f"written by the demo, {number}\n")
        moved = self.rename_folder()
        self.teller.line(f"{len(edited)} files edited, {len(set(removed) - set(edited))} removed, 5 new,")
        self.teller.line(f"{moved} entries moved by renaming one folder")

    def mirror_again(self) -> None:
        self.teller.step("The second mirror sends only what changed")
        done = self.sync()
        share = done["bytes_sent"] / max(1, self.first_sent_bytes)
        self.teller.line(
            f"{count(done['unchanged'])} unchanged, {done['changed']} changed, {done['new']} new, "
            f"{done['removed']} removed, {done.get('moved', 0)} moved; {done['seconds']:.1f} s"
        )
        self.teller.line("(folders count too: those of the renamed one, and those whose own times changed)")
        self.teller.expect(done["verdict"] == "verified", "verified again", done)
        sent = f"{size(done['bytes_sent'])} sent, {100 * share:.2f} % of the first time"
        self.teller.expect(share < 0.25, sent)
        self.show_snapshots()

    def damage(self) -> tuple[str, str]:
        self.teller.step("Somebody, or a bad disk, changes the server's copy behind our back")
        tree = survey(str(self.source))
        assert tree is not None
        flipped, aged = tree.files[len(tree.files) // 3], tree.files[2 * len(tree.files) // 3]
        native = self.native
        path = native / flipped
        seen = path.stat()
        with path.open("r+b") as stream:
            stream.seek(seen.st_size // 2)
            byte = stream.read(1)[0]
            stream.seek(seen.st_size // 2)
            stream.write(bytes([byte ^ 1]))
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        other = (native / aged).stat()
        os.utime(native / aged, ns=(other.st_atime_ns, other.st_mtime_ns - 3600 * 10**9))
        self.teller.line(f"one bit of one byte, size and time as before:  {flipped}")
        self.teller.line(f"one modification time, an hour earlier:        {aged}")
        return flipped, aged

    def convict(self, flipped: str, aged: str) -> None:
        self.teller.step("Validation names exactly those; the source is not asked")
        result = self.run("validate", self.volume.url, "--wait", "--json")
        findings = [row for row in result.rows if "path" in row and "kind" in row]
        for row in findings:
            self.teller.line(f"{row['kind']:8} {row['path']}")
        found = {(row["path"], row["kind"]) for row in findings}
        self.teller.expect(
            result.status == 4, "exit 4: differences", f"exit {result.status}: {result.errors}"
        )
        expected = {(flipped, "content"), (aged, "mtime")}
        self.teller.expect(found == expected, "both, and nothing else", found ^ expected)

    def repair(self) -> None:
        self.teller.step("The next mirror repairs by itself")
        done = self.sync()
        self.teller.line(f"{size(done['bytes_sent'])} sent, {done['seconds']:.1f} s")
        self.teller.expect(done["verdict"] in ("repaired", "verified"), f"verdict: {done['verdict']}", done)
        result = self.run("validate", self.volume.url, "--wait", "--json")
        verdict = result.last.get("verdict")
        self.teller.expect(result.status == 0, f"validated again: {verdict}", result.output + result.errors)

    def restore(self) -> None:
        self.teller.step("Restore into an empty folder, and compare with the source")
        target = self.folder / "restored"
        result = self.run("restore", self.volume.url, str(target), "--json")
        self.teller.expect(result.status == 0, f"restored in {result.seconds:.1f} s", result.errors)
        self.compare("byte by byte and attribute by attribute: no difference", target)

    # --- how they are done --------------------------------------------------------------------

    @property
    def native(self) -> Path:
        return self.served.native_path("demo")

    def run(self, *argv: str) -> Result:
        shown = [word.replace(str(self.folder) + "/", "") for word in argv if word != "--json"]
        self.teller.command(*shown)
        return command(*argv, environment=self.volume.environment, timeout_s=110)

    def sync(self) -> dict[str, Any]:
        """Mirror, and return the event that `sync --json` ends with."""
        state = str(self.folder / "state")
        result = self.run("sync", str(self.source), self.volume.url, "--state", state, "--wait", "--json")
        if result.status:
            raise StoryError(f"sync ended with {result.status}: {result.errors}{result.output[-2000:]}")
        return result.last

    def show_snapshots(self) -> None:
        environment = self.volume.environment
        for row in checked("snapshots", self.volume.url, "--json", environment=environment).rows:
            self.teller.line(f"snapshot {row['name']}  {count(row['entries'])} entries  {row['verdict']}")

    def rename_folder(self) -> int:
        """Rename the top-level folder with most entries below it, and say how many those are."""
        sizes: dict[str, int] = {}
        for name in self.tree.files:
            if "/" in name:
                top = name.split("/", 1)[0]
                sizes[top] = sizes.get(top, 0) + 1
        if not sizes:
            return 0
        largest = max(sizes, key=lambda top: sizes[top])
        os.rename(self.source / largest, self.source / f"{largest} renamed")
        return sizes[largest]

    def compare(self, text: str, other: Path) -> None:
        comparer = Comparer(str(self.source), str(other), skip=(HIDDEN,))
        found = list(self._few(comparer))
        tally = comparer.tally
        self.teller.expect(not found, text, "; ".join(found))
        self.teller.line(f"({count(tally.entries)} entries, {size(tally.size_bytes)} compared)")

    @staticmethod
    def _few(comparer: Comparer) -> Iterator[str]:
        for number, difference in enumerate(comparer.differences()):
            if number == 10:
                yield "..."
                return
            yield str(difference)

    def tell(self) -> None:
        self.copy_source()
        self.serve()
        self.mirror()
        self.change()
        self.mirror_again()
        flipped, aged = self.damage()
        self.convict(flipped, aged)
        self.repair()
        self.restore()

    def clean(self) -> None:
        if hasattr(self, "served"):
            self.served.stop()
        end_children()  # an interrupt between fork and wait loses sight of a command
        if os.environ.get("KEEP"):
            self.teller.line(f"kept: {self.folder}")
            return
        scratch.discard(self.folder)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def scratch_parent() -> str:
    """Return a folder on disk for the scratch folder: /tmp is often memory."""
    for parent in (os.environ.get("TMPDIR"), "/var/tmp", tempfile.gettempdir()):
        if parent and os.access(parent, os.W_OK):
            return parent
    return "."


def main(argv: list[str]) -> int:
    if argv[:1] == ["--discard"]:
        scratch.discard(Path(argv[1]))
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are not UTF-8
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    teller = Teller()
    folder = Path(tempfile.mkdtemp(prefix="mirrorkeep-demo-", dir=scratch_parent()))
    print(f"Mirrorkeep, the whole story. Scratch folder: {folder}")
    demo = Demo(folder, teller)
    status = 1
    try:
        demo.tell()
        status = 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    except (StoryError, ServedError, scratch.ScratchError, subprocess.SubprocessError, OSError) as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        if hasattr(demo, "served") and (words := demo.served.last_words()):
            print(f"the server's last words:\n{words}", file=sys.stderr)
    finally:
        demo.clean()
    if status == 0:
        teller.step("Done: mirrored, changed, damaged, found, repaired, restored, proven equal")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
