"""`edgeserve inspect`: what a release contains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeserve.cli.output import print_json, print_table

if TYPE_CHECKING:
    from edgeserve.contracts.variant import VariantContract
    from edgeserve.release.layout import Release, Variant


def command(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="Folder or .tar of a release.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show what a release contains: its variants, what compiling cost them, and the evidence.

    Reads the documents and checks them against their digests; `edgeserve verify` checks the model files too.
    """
    from edgeserve.release.layout import open_release

    opened = open_release(release)
    if as_json:
        print_json(_document(opened))
    else:
        _print(opened)


def _document(release: Release) -> dict[str, Any]:
    return {
        "digest": release.digest,
        "name": release.identity.name,
        "version": release.identity.version,
        "counter": release.identity.counter,
        "index_size": release.index_size,
        "variants": [
            {
                "digest": variant.digest,
                "size": _size(variant),
                "latency_is_proxy": variant.contract.latency_is_proxy,
                "files": variant.files,
                "contract": variant.contract,
            }
            for variant in release.variants
        ],
        "evidence": release.evidence,
    }


def _print(release: Release) -> None:
    identity = release.identity
    typer.echo(f"{identity.name} {identity.version} (counter {identity.counter})")
    typer.echo(f"digest {release.digest}\n")
    headers = ("target", "precision", "runtime", "size", "accuracy", "float", "drop (95 %)", "latency", "requires")
    print_table(headers, [_row(variant) for variant in release.variants])
    hosts = sorted({variant.contract.measured.host for variant in release.variants if variant.contract.measured})
    if hosts:
        typer.echo(f"measured on {_plain(', '.join(hosts))}; latency is the median of one row on one thread")
    if any(variant.contract.latency_is_proxy for variant in release.variants):
        typer.echo("host proxy: not the target's hardware, so it ranks variants and says nothing of their speed there")
    evidence = [f"{title} ({_bytes(descriptor.size)})" for title, descriptor in release.evidence.items()]
    typer.echo(f"evidence: {', '.join(evidence) or 'none'}")


def _row(variant: Variant) -> tuple[str, ...]:
    contract = variant.contract
    accuracy = float_accuracy = drop = latency = "not measured"
    if (measured := contract.measured) is not None:
        accuracy = f"{_plain(measured.metric)} {measured.value:.4f}"
        float_accuracy = f"{measured.float_value:.4f}"
        drop = f"{measured.drop:+.4f} [{measured.drop_low:+.4f}, {measured.drop_high:+.4f}]"
        latency = f"{measured.latency_ms:.3f} ms" + (" host proxy" if contract.latency_is_proxy else "")
    return (
        contract.target,
        contract.precision.value,
        f"{contract.runtime} {_plain(contract.runtime_device)}",
        _bytes(_size(variant)),
        accuracy,
        float_accuracy,
        drop,
        latency,
        _plain(_requires(contract)),
    )


def _requires(contract: VariantContract) -> str:
    selector = contract.selector
    words = ["/".join(selector.architectures), *selector.cpu_features]
    if selector.accelerator != "cpu":
        words.append(f"{selector.accelerator_vendor} {selector.accelerator}".strip())
    if selector.min_memory_bytes:
        words.append(f"{_bytes(selector.min_memory_bytes)} memory")
    return ", ".join(word for word in words if word) or "nothing"


def _size(variant: Variant) -> int:
    return sum(descriptor.size for descriptor in variant.files.values())


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _plain(text: str) -> str:
    """Free text of a release, without anything that could drive a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:120])
