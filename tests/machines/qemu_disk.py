"""The disk that virtual machines begin with: Debian as Hetzner's image has it, made once and kept in the cache."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import shared_cache
from testbed.needs import MMDEBSTRAP, fetched, requires

LIMIT = 900.0  # seconds for one command
_SIZE = 6 << 30  # bytes; what is never written takes no room
OUTSIDE = "10.0.2.2"  # where QEMU's network has the 127.0.0.1 of the namespace that it runs in

_PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "udev", "kmod", "e2fsprogs", "dbus"),
    *("libpam-systemd", "dbus-user-session", "cloud-init", "isc-dhcp-client", "iproute2", "netbase", "openssh-server"),
    *("python3", "git", "perl", "procps", "util-linux", "sudo", "curl", "ca-certificates", "qemu-guest-agent"),
)
_LEFT_OUT = tuple(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale"))

# What Hetzner's own images preset, without what would ask a network that is not there: no name is looked up outside. A
# port of the machine's own 127.0.0.1 leads out while relayed@PORT.socket is started. The smallest initrd that finds the
# disk: each second that it takes counts tenfold without hardware support.
_PREPARE = r"""#!/bin/sh
set -e
cd "$1"
rm -f etc/ssh/ssh_host_*
: > etc/machine-id
echo '/dev/vda / ext4 defaults,noatime 0 0' > etc/fstab
cat > etc/cloud/cloud.cfg.d/90_hetzner.cfg << 'END'
datasource_list: [ Hetzner, None ]
locale: false
ssh_genkeytypes: [ ed25519, ecdsa ]
apt_preserve_sources_list: true
system_info:
  network:
    renderers: [ networkd ]
END
: > etc/resolv.conf
cat > etc/systemd/system/relayed@.socket << 'END'
[Socket]
ListenStream=127.0.0.1:%i
END
cat > etc/systemd/system/relayed@.service << 'END'
[Service]
ExecStart=/lib/systemd/systemd-socket-proxyd OUTSIDE:%i
END
mkdir -p etc/initramfs-tools/conf.d
printf 'MODULES=list\nCOMPRESS=gzip\nFSTYPE=ext4\n' > etc/initramfs-tools/conf.d/test
printf 'virtio_pci\nvirtio_blk\next4\n' >> etc/initramfs-tools/modules
chroot . update-initramfs -u
chroot . systemctl enable systemd-networkd qemu-guest-agent
chroot . systemctl mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
  e2scrub_all.timer e2scrub_reap.service fstrim.timer apparmor.service getty@tty1.service dpkg-db-backup.timer \
  systemd-pstore.service
""".replace("OUTSIDE", OUTSIDE)


@dataclass(frozen=True)
class Disk:
    """What a machine boots from; nothing is ever written there."""

    file: Path  # raw, one ext4 file system
    kernel: Path
    initrd: Path


def disk() -> Disk:
    """Return the disk, made once a machine and recipe: that takes two minutes."""
    recipe = hashlib.sha256("\0".join([*_PACKAGES, *_LEFT_OUT, _PREPARE, str(_SIZE)]).encode()).hexdigest()[:12]
    folder = shared_cache.FOLDER / f"virtual-machine-{recipe}"
    shared_cache.FOLDER.mkdir(parents=True, exist_ok=True)
    with (shared_cache.FOLDER / ".virtual-machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            # Of other recipes, and of makers that were killed.
            for old in shared_cache.FOLDER.glob("virtual-machine-*"):
                shutil.rmtree(old)
            part = folder.with_name(folder.name + ".part")
            part.mkdir()
            _make(part)
            part.rename(folder)
    return Disk(folder / "disk", folder / "kernel", folder / "initrd")


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        root, prepare = Path(scratch) / "root", Path(scratch) / "prepare"
        prepare.write_text(_PREPARE)
        prepare.chmod(0o755)
        requires(MMDEBSTRAP)
        fetched(
            [
                *("mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(_PACKAGES)}"),
                *("--aptopt=Acquire::Languages none", "--aptopt=APT::Install-Recommends false", *_LEFT_OUT),
                *(f"--customize-hook={prepare}", "bookworm", str(root)),
            ],
            limit=LIMIT,
        )
        shutil.copyfile(next(root.glob("boot/vmlinuz-*")), folder / "kernel")
        # Unpacked here, where that takes no time.
        (folder / "initrd").write_bytes(gzip.decompress(next(root.glob("boot/initrd.img-*")).read_bytes()))
        for left in root.glob("boot/*"):
            left.unlink() if left.is_file() else shutil.rmtree(left)
        with (folder / "disk").open("wb") as file:
            file.truncate(_SIZE)
        options = ("-q", "-t", "ext4", "-E", "lazy_itable_init=1", "-J", "size=8")
        _run("mke2fs", *options, "-d", str(root), str(folder / "disk"))


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr[-2000:].decode('utf-8', 'replace')}"
