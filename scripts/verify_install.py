"""Says, line by line, whether Triton kernels run on this machine, and what to do where they do not.

    python verify_install.py

Needs Python and nothing else, no other file either: copy it to wherever something is wrong. A line
begins with ok, with note (good to know) or with problem (in the way). The exit status is 1 if there
is a problem, else 0: a machine without a GPU is ready, in Triton's interpreter.
"""

# runs on old versions of Python too, since it has to say that they are too old: no annotations

import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings

# oldest that may do, and the range that the lectures are tested with
PYTHON = (3, 10), (3, 10), (3, 14)
TORCH = (2, 10), (2, 11), (2, 13)
TRITON = (3, 6), (3, 6), (3, 7)
# which Triton each torch asks for
TRITON_OF = {(2, 9): (3, 5), (2, 10): (3, 6), (2, 11): (3, 6), (2, 12): (3, 7), (2, 13): (3, 7)}
TRITON_OF.update({(2, 14): (3, 8), (2, 15): (3, 9)})
DRIVER_OF_CUDA = {12: 525, 13: 580}
CAPABILITY = 8, 0

KERNEL = '''
import sys, time, torch, triton, triton.language as tl

@triton.jit
def double_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    tl.store(out_ptr + offs, 2 * tl.load(x_ptr + offs, mask=mask), mask=mask)

x = torch.arange(1000, dtype=torch.float32, device=sys.argv[1])
out, start = torch.full_like(x, float("nan")), time.time()
double_kernel[(triton.cdiv(1000, 256),)](x, out, 1000, BLOCK=256)
right = int((out == 2 * x).sum())
print(f"{right} of 1000 elements right, {time.time() - start:.1f} s for the first call")
sys.exit(right != 1000)
'''


def numbers(version):
    """(2, 13) of "2.13.0+cpu"; (0, 0) of what is no version."""
    found = re.match(r"(\d+)\.(\d+)", str(version))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def dotted(pair):
    return "{}.{}".format(*pair)


def pip(package):
    return f'{sys.executable} -m pip install "{package}"'


def pip_range(name, tested):
    _, low, (major, minor) = tested
    return pip(f"{name}>={dotted(low)},<{major}.{minor + 1}")


def check_python():
    line = f"Python {platform.python_version()}"
    oldest, _, newest = PYTHON
    if sys.version_info[:2] < oldest:
        yield "problem", f"{line} is too old: make an environment with {dotted(oldest)} or later"
    elif sys.version_info[:2] > newest:
        yield "note", f"{line} is newer than {dotted(newest)}, the last with wheels of torch 2.13"
    else:
        yield "ok", line


def check_package(name, tested, missing):
    """Yields a line; returns the imported module, or None."""
    oldest, low, high = tested
    if importlib.util.find_spec(name) is None:
        yield "problem", f"{name} is not installed here: {missing}"
        return None
    try:
        module = importlib.import_module(name)
        version = module.__version__
    # a library that is missing is an OSError, a file of this name an AttributeError, and so on
    except Exception as error:
        yield "problem", f"{name} cannot be imported, {said(error)}: install it anew"
        return None
    line = f"{name} {version}"
    if numbers(version) < oldest:
        yield "problem", f"{line} is too old: {pip_range(name, tested)}"
    elif not low <= numbers(version) <= high:
        yield "note", f"{line}; the lectures are tested with {dotted(low)} to {dotted(high)}"
    else:
        yield "ok", line
    return module


def said(error):
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"


def no_triton():
    system = platform.system()
    if system == "Linux":
        return pip_range("triton", TRITON)
    if system == "Windows":
        return pip_range("triton-windows", TRITON) + ", or use WSL2"
    return f"PyPI has none for {system}; use a Linux container, Colab or a rented GPU"


def check_pair(torch, triton):
    wanted = TRITON_OF.get(numbers(torch.__version__))
    if wanted == numbers(triton.__version__):
        yield "ok", "this torch and this triton belong together"
    elif wanted:
        fix = pip(f"triton=={dotted(wanted)}.*")
        line = f"this torch is made for triton {dotted(wanted)}, torch.compile may fail"
        yield "note", f"{line}: {fix}"


def check_driver(torch):
    """Yields a line; returns the names of the NVIDIA GPUs that the driver knows, None without."""
    if torch and torch.version.hip:
        return None  # AMD's is part of the system
    tool = shutil.which("nvidia-smi")
    if not tool:
        yield "note", "no NVIDIA driver: nvidia-smi is not on the PATH"
        return None
    query = [tool, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    run = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    answer = run.stdout.decode(errors="replace").strip()
    if run.returncode or not answer:
        hint = "load the driver; a container needs --gpus all"
        yield "problem", f"nvidia-smi finds no GPU, {answer[-80:] or 'and says nothing'!r}: {hint}"
        return None
    driver = answer.partition(",")[0]
    cuda = torch and torch.version.cuda
    lowest = cuda and DRIVER_OF_CUDA.get(numbers(cuda)[0])
    if lowest and int(driver.partition(".")[0]) < lowest:
        fix = f"update it to {lowest} or later, or take torch 2.10, which has CUDA 12"
        yield "problem", f"driver {driver} is too old for this torch, made with CUDA {cuda}: {fix}"
    else:
        yield "ok", f"driver {driver}" + (f", torch made with CUDA {cuda}" if cuda else "")
    return [line.partition(", ")[2] for line in answer.splitlines()]


def check_gpu(torch, known):
    """Yields a line; returns the name of the GPU on which torch can work, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the line says it
        available = torch.cuda.is_available()
    if available:
        name = torch.cuda.get_device_name()
        if torch.version.hip:
            yield "note", f"{name}, with ROCm {torch.version.hip}: not tested with the lectures"
            return name
        capability = torch.cuda.get_device_capability()
        line = f"{name}, compute capability {dotted(capability)}"
        if capability < CAPABILITY:
            hint = "not supported since triton 3.3; use TRITON_INTERPRET=1 or another GPU"
            yield "problem", f"{line}: {hint}"
        else:
            yield "ok", line
        return name
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        yield "note", "an Intel GPU, which torch calls xpu and the lectures do not use: see Install"
    elif not known:
        yield "note", "no GPU for torch: kernels run in the interpreter, on the CPU, slowly"
    elif torch.version.cuda is None:
        fix = "pip uninstall torch, then pip install torch from PyPI"
        yield "problem", f"there is a GPU ({known[0]}), but this torch is built without CUDA: {fix}"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        value = os.environ["CUDA_VISIBLE_DEVICES"]
        yield "problem", f"torch finds no GPU: CUDA_VISIBLE_DEVICES={value!r} hides it; unset it"
    else:
        hint = "restart after an update of the driver; a container needs --gpus all"
        yield "problem", f"torch finds no GPU, though nvidia-smi does ({known[0]}): {hint}"
    return None


def check_compiler(level):
    """Triton compiles a small launcher in C at a kernel's first call on a GPU."""
    if platform.system() == "Windows":
        return  # triton-windows brings one
    names = [os.environ["CC"].split()[0]] if os.environ.get("CC") else ["gcc", "clang"]
    found = next(filter(None, map(shutil.which, names)), None)
    headers = os.path.join(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    if not found:
        fix = "sudo apt install build-essential, or what your system calls it"
        yield level, f"no C compiler, neither {' nor '.join(names)}, which a GPU needs: {fix}"
    elif not os.path.exists(headers):
        fix = "sudo apt install python3-dev, for this version of Python"
        yield level, f"C compiler {found}, but no {headers}, which a GPU needs: {fix}"
    else:
        yield "ok", f"C compiler {found}, and Python's headers"


def check_cache(level):
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")
    folder = os.environ.get("TRITON_CACHE_DIR") or os.path.join(home, ".triton", "cache")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 2**20)
    except OSError as error:
        fix = "set TRITON_CACHE_DIR to a folder that you may write to, with room"
        yield level, f"compiled kernels cannot be kept in {folder}, {error.strerror}: {fix}"
    else:
        yield "ok", f"compiled kernels are kept in {folder}"


def check_numpy(triton, level):
    """The interpreter computes with NumPy, which neither torch nor triton brings."""
    if importlib.util.find_spec("numpy") is None:
        yield level, f"NumPy is not installed, which the interpreter needs: {pip('numpy')}"
        return
    version = importlib.import_module("numpy").__version__
    if triton and numbers(triton.__version__) == (3, 6) and numbers(version) >= (2, 4):
        fix = pip("numpy<2.4")
        yield level, f"NumPy {version} is too new for the interpreter of triton 3.6: {fix}"
    else:
        yield "ok", f"NumPy {version}, for the interpreter"


def check_shadow():
    for name in ("triton", "torch"):
        for path in (name + ".py", name):
            if os.path.exists(path):
                path = os.path.abspath(path)
                yield "note", f"{path} hides the package from programs beside it: rename it"


def check_kernel(gpu):
    """Runs a kernel in a process of its own: the interpreter is chosen before the import."""
    where = f"on {gpu}" if gpu else "in the interpreter"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "double.py")
        with open(path, "w") as file:
            file.write(KERNEL)
        command = [sys.executable, path, "cuda" if gpu else "cpu"]
        env = dict(os.environ, TRITON_INTERPRET="0" if gpu else "1")
        run = subprocess.run(command, env=env, capture_output=True)
    output, errors = (text.decode(errors="replace").strip() for text in (run.stdout, run.stderr))
    if run.returncode == 0:
        yield "ok", f"a kernel {where}: {output}"
    elif "elements right" in output:
        yield "problem", f"a kernel {where} computes wrongly: {output}; report it"
    else:
        last = (errors.splitlines() or [f"exit status {run.returncode}"])[-1]
        yield "problem", f"a kernel {where} fails with: {last}"


def checks():
    """Yields the status and the text of each line."""
    yield from check_python()
    torch = yield from check_package("torch", TORCH, pip_range("torch", TORCH))
    triton = yield from check_package("triton", TRITON, no_triton())
    if torch and triton:
        yield from check_pair(torch, triton)
    known = yield from check_driver(torch)
    gpu = (yield from check_gpu(torch, known)) if torch else None
    if gpu and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y"):
        yield "note", "TRITON_INTERPRET is set, and keeps kernels from the GPU: unset it"
        gpu = None
    on_gpu = "problem" if gpu else "note"
    on_cpu = "problem" if torch and not (gpu or known) else "note"
    yield from check_compiler(on_gpu)
    yield from check_cache(on_gpu)
    yield from check_numpy(triton, on_cpu)
    yield from check_shadow()
    if torch and triton:
        yield from check_kernel(gpu)


def main():
    problems = 0
    for status, text in checks():
        print(f"{status:8} {text}", flush=True)
        problems += status == "problem"
    if problems:
        print(f"\nNot ready, {problems} in the way: mend the first, then run this again.")
    else:
        print("\nReady.")
    return min(problems, 1)


if __name__ == "__main__":
    sys.exit(main())
