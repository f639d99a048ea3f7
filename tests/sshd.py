# SPDX-License-Identifier: 0BSD
"""A board for tests: a real sshd on the loopback address, which `ssh` reaches under any name."""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

HOSTILE = "it's a $(touch broken) place; `exit 3` *"  # for whoever does not quote

EMULATED = """case " $* " in
*" -shared "* | *" -c "* | *" -E "* | *" -dumpmachine "*) exec {gcc} "$@" ;;
esac
{gcc} "$@" -static || exit
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
case $out in /*) exit ;; esac
mv "$out" "$out.elf"
echo '#!/bin/sh' >"$out"
echo 'exec {qemu} -cpu cortex-a72 '"$out.elf"' "$@"' >>"$out"
chmod +x "$out" """


class Sshd:
    """folder: where all of it lies; bin: first in the board's PATH; tmp: its place for temporary
    folders; near: the folder of an `ssh` that goes to it, whatever host is named.
    """

    def __init__(self, folder: Path, tool: Callable[[str], str]) -> None:
        self.folder, self.bin, self.tmp = folder, folder / "bin", folder / HOSTILE
        self.near = folder / "near"
        for one in (self.bin, self.tmp, self.near):
            one.mkdir(parents=True)
        self._server = _sshd(tool)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for key in ("host", "user"):
            self.make_key(key, tool)
        (folder / "authorized").write_text((folder / "user.pub").read_text())
        self.trust()
        (self.near / "config").write_text(
            f"Host *\n  HostName 127.0.0.1\n  Port {self.port}\n  IdentitiesOnly yes\n"
            f'  IdentityFile "{folder}/user"\n  UserKnownHostsFile "{folder}/known"\n'
            "  GlobalKnownHostsFile /dev/null\n"
        )
        wrapper = self.near / "ssh"
        ssh = [tool("ssh"), "-F", f"{self.near}/config", "-l", getpass.getuser()]
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(ssh)} "$@"\n')
        wrapper.chmod(0o755)
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(folder),  # whose shell has nothing to say
            "TMPDIR": str(self.tmp),
            "CFLAGS": "-O0",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def make_key(self, name: str, tool: Callable[[str], str]) -> None:
        file = self.folder / name
        file.unlink(missing_ok=True)
        command = [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
        subprocess.run(command, check=True)

    def trust(self) -> None:
        """Its host key is known."""
        known = f"[127.0.0.1]:{self.port} {(self.folder / 'host.pub').read_text()}"
        (self.folder / "known").write_text(known)

    def program(self, name: str, script: str) -> None:
        """A program of the board's, ahead of this machine's."""
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def emulate(self, tool: Callable[[str], str]) -> None:
        """Its compiler is of AArch64, and the programs that it makes run under QEMU."""
        gcc, qemu = tool("aarch64-linux-gnu-gcc"), tool("qemu-aarch64")
        self.program("ar", f'exec {tool("aarch64-linux-gnu-ar")} "$@"')
        self.program("cc", EMULATED.format(gcc=gcc, qemu=qemu))

    def start(self) -> None:
        quoted = " ".join(f'"{key}={value}"' for key, value in self.environment.items())
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile {self.folder}/pid\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nSetEnv {quoted}\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # what it would like to be confined to
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [self._server, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log
        )
        log.close()
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def processes(self, what: bytes) -> list[int]:
        """Those below it whose command line has `what`."""
        assert self.process is not None
        found = [self.process.pid]
        for pid in found:  # grows
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                found += map(int, children.split())
        return [pid for pid in found[1:] if what in _command(pid)]

    def kill(self, what: bytes) -> None:
        for pid in self.processes(what):
            os.kill(pid, signal.SIGKILL)

    def cut(self) -> None:
        """As if the network were gone: what serves connections is killed."""
        self.kill(b"sshd: ")

    def stop(self) -> None:
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait()

    def left(self) -> list[Path]:
        """What is in its temporary place, once it has had time to put things away."""
        for _ in range(100):
            if not any(self.tmp.iterdir()):
                break
            time.sleep(0.05)
        return list(self.tmp.iterdir())


def _sshd(tool: Callable[[str], str]) -> str:
    usual = Path("/usr/sbin/sshd")  # where no user's PATH leads
    return str(usual) if usual.is_file() else tool("sshd")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
