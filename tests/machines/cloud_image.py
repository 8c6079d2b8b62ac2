"""The image of a server of the fake cloud as a container: Debian with systemd, cloud-init and sshd; made once."""

from __future__ import annotations

import hashlib

from containers import Docker, debian_image

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


def cloud_image(docker: Docker) -> str:
    """Return the image's name; made once a machine, and again when what makes it changes."""
    digest = hashlib.sha256("\n".join([*PACKAGES, _HOOK]).encode()).hexdigest()[:12]
    return debian_image(docker, f"coding-agent-test/cloud:{digest}", ",".join(PACKAGES), _HOOK)
