"""What a compiled kernel needs of its card, read from the binary with the tools inside the Triton wheel."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX_INSTRUCTION = {"sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma"}


def describe(architecture, kernel):
    """Registers, shared memory, spills and instruction counts of a `CompiledKernel`."""
    return _amd(kernel) if architecture.startswith("gfx") else _nvidia(architecture, kernel)


def _nvidia(architecture, kernel):
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(kernel.asm["cubin"])
        ptx.write_text(kernel.asm["ptx"])
        usage = _run("cuobjdump", "--dump-resource-usage", cubin)
        sass = _run("nvdisasm", cubin)
        notes = ""
        if architecture == "sm_90":
            # Only ptxas itself says that it had to serialise wgmma.
            notes = _run("ptxas-blackwell", "-v", "--gpu-name=sm_90a", ptx, "-o", Path(folder, "again.cubin"))
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", usage).groups())
    opcodes = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", sass, re.MULTILINE))
    return {
        "registers": registers,
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "scratch": stack + local + opcodes["LDL"] + opcodes["STL"],
        "opcodes": opcodes,
        "serialised": "C75" in notes or "serialized" in notes,
        "specialised": "ttg.warp_specialize" in kernel.asm["ttgir"] and opcodes["USETMAXREG"] > 0,
    }


def _amd(kernel):
    assembly = kernel.asm["amdgcn"]
    number = lambda name: int(re.search(rf"{name}\s*:?\s*(\d+)", assembly).group(1))  # noqa: E731
    return {
        "registers": number(r"\.vgpr_count"),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "scratch": number("ScratchSize") + number(r"\.vgpr_spill_count"),
        "opcodes": Counter({"v_mfma": len(re.findall(r"^\s+v_mfma", assembly, re.MULTILINE))}),
        "serialised": False,
        "specialised": False,
    }


def _run(tool, *arguments):
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
