"""A Triton driver that names a GPU that is not there: kernels compile exactly as launched, and nothing runs."""

from triton.backends.compiler import GPUTarget

MAX_SHARED_MEMORY = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}


def target_of(architecture):
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


class StubUtils:
    def __init__(self, architecture):
        self.architecture = architecture

    def get_device_properties(self, device):
        return {"max_shared_mem": MAX_SHARED_MEMORY[self.architecture]}

    def load_binary(self, name, binary, shared, device):
        return None, None, 0, 0, 1024

    def unload_module(self, module):
        pass


class StubDriver:
    """Answers what the JIT asks before a launch; the launch itself is a no-op."""

    def __init__(self, architecture):
        self.architecture = architecture
        self.utils = StubUtils(architecture)

    def get_current_target(self):
        return target_of(self.architecture)

    def get_current_device(self):
        # The JIT keeps its compiled kernels by device number: one number for each kind of GPU.
        return list(MAX_SHARED_MEMORY).index(self.architecture)

    def get_current_stream(self, device):
        return 0

    def launcher_cls(self, source, metadata):
        return lambda *arguments: None

    def is_active(self):
        return True
