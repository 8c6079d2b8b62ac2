"""The software bill of materials of a release: CycloneDX, as JSON."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from release.pins import DISTRIBUTION, Pin


def bill(version: str, wheel: str, needed: Sequence[Pin], direct: Sequence[str], made_at: int) -> str:
    """Return the bill of the wheel with the sha256 `wheel`; the same one for the same release.

    Raises `ValueError` where it is not as its schema asks.
    """
    package = _component(DISTRIBUTION, version, ComponentType.APPLICATION)
    package.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=wheel))
    package.licenses.add(DisjunctiveLicense(id="MIT"))
    parts = {pin.name: _component(pin.name, pin.version, ComponentType.LIBRARY) for pin in needed}
    bom = Bom(components=parts.values(), serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{wheel}"))
    bom.metadata.component = package
    bom.metadata.timestamp = datetime.fromtimestamp(made_at, UTC)
    bom.register_dependency(package, [parts[name] for name in direct])
    for name, part in parts.items():
        bom.register_dependency(part, [parts[pin.name] for pin in needed if name in pin.needed_by])
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the bill of materials is not as its schema asks: {wrong}")
    return text + "\n"


def _component(name: str, version: str, kind: ComponentType) -> Component:
    url = PackageURL("pypi", None, name, version)
    return Component(name=name, version=version, type=kind, purl=url, bom_ref=str(url))
