"""The image of a server of the fake cloud as a container: Debian with systemd, cloud-init and sshd; made once."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import tempfile
from pathlib import Path

import shared_cache
from containers import Docker

LIMIT = 900.0  # seconds
# What a server has that was just ordered; dbus-user-session and libpam-systemd make user managers.
PACKAGES = (
    *("systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "udev", "openssh-server", "cloud-init"),
    *("python3", "sudo", "git", "perl", "procps", "iproute2", "iputils-ping", "netbase", "ca-certificates", "curl"),
)
_CLOUD_CONFIG = """\
datasource_list: [ NoCloud, None ]
network: { config: disabled }
# What costs seconds of a boot and changes nothing here.
locale: false
ssh_genkeytypes: [ ed25519, ecdsa ]
apt_preserve_sources_list: true
"""
# What a container can't do, or what would work in the background.
_MASKED = (
    *("systemd-networkd-wait-online.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "fstrim.timer", "dpkg-db-backup.timer", "systemd-pstore.service", "getty.target"),
    *("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-kernel.socket"),
    *("systemd-udevd-control.socket", "console-getty.service", "systemd-resolved.service"),
)
_HOOK = f"""\
#!/bin/sh
set -eu
rm -f "$1"/etc/ssh/ssh_host_*
: >"$1"/etc/machine-id
mkdir -p "$1"/etc/cloud/cloud.cfg.d
cat >"$1"/etc/cloud/cloud.cfg.d/90_test.cfg <<'CONFIG'
{_CLOUD_CONFIG}CONFIG
for unit in {" ".join(_MASKED)}; do
  ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
"""
_LEFT_OUT = tuple(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale"))


def cloud_image(docker: Docker) -> str:
    """Return the image's name; made once a machine, and again when what makes it changes."""
    digest = hashlib.sha256("\n".join([*PACKAGES, _HOOK]).encode()).hexdigest()[:12]
    name = f"coding-agent-test/cloud:{digest}"
    shared_cache.FOLDER.mkdir(parents=True, exist_ok=True)
    with (shared_cache.FOLDER / ".cloud-image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not docker("images", "-q", name):
            docker("import", "--change", 'CMD ["/sbin/init"]', str(_root_files(digest)), name)
    return name


def _root_files(digest: str) -> Path:
    archive = shared_cache.FOLDER / f"cloud-{digest}.tar"
    if archive.is_file():
        return archive
    for outdated in shared_cache.FOLDER.glob("cloud-*.tar"):
        outdated.unlink()
    part = archive.with_suffix(".part.tar")
    with tempfile.TemporaryDirectory() as folder:
        hook = Path(folder) / "hook.sh"
        hook.write_text(_HOOK)
        hook.chmod(0o755)
        done = subprocess.run(
            [
                *("mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
                *("--aptopt=Acquire::Languages none", "--aptopt=APT::Install-Recommends false", *_LEFT_OUT),
                *(f"--customize-hook={hook}", "bookworm", str(part)),
            ],
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-2000:]
    part.replace(archive)
    return archive
