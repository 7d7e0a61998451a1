

# The answers.


class Session:
    """Answers requests; what it changes of the interpreter for that, `quit` changes back."""

    def __init__(self):
        self.problem = None
        self.absent = {}
        self.undo = []

    def answer(self, text, lent=None):
        """The reply to a request, both as JSON."""
        request = json.loads(text)
        command = {"hello": self.hello, "setup": self.setup, "time": self.time, "quit": self.quit}[request["cmd"]]
        try:
            # Functions of torch are there as soon as `hello` was answered.
            # What a library prints is no result of ours.
            with contextlib.redirect_stdout(sys.stderr):
                with contextlib.nullcontext() if torch is None else torch.inference_mode():
                    reply = command(request, lent)
        except Skip as reason:
            return json.dumps({"ok": False, "error": str(reason)})
        except Exception as error:
            text = " ".join(str(error).split())
            return json.dumps({"ok": False, "error": f"{type(error).__name__}: {text[:600]}"})
        return json.dumps({"ok": True, **reply})

    def hello(self, request, _lent):
        threads = request["threads"]
        loaded = set(sys.modules)
        before = set_environment(environment(threads))
        self.undo.append(lambda: set_environment(before))
        load_packages()
        if "torch" in loaded and torch is not None:
            count, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
            self.undo.append(lambda: torch.set_num_threads(count))
            self.undo.append(lambda: torch.set_float32_matmul_precision(precision))
        if "numpy" in loaded and np is not None:
            undo = limit_blas(threads)
            if undo is not None:
                self.undo.append(undo)
            elif threads != os.cpu_count():
                self.absent["numpy"] = "NumPy was imported before, and without threadpoolctl keeps its number of threads"
        versions = {name: getattr(package, "__version__", "unknown") for name, package in PACKAGES.items()}
        missing = dict(MISSING)
        try:
            # Only told: importing it starts threads, which most runs have no need of.
            versions["jax"] = importlib.metadata.version("jax")
        except importlib.metadata.PackageNotFoundError:
            missing["jax"] = "it is not installed"
        return {"python": sys.version.split()[0], "packages": versions, "missing": missing}

    def setup(self, request, lent):
        self.problem = None
        gc.collect()
        kind = SuiteProblem if "kind" in request else KeysProblem
        self.problem = kind(request, lent, self.absent)
        return {"peers": self.problem.offered, "skipped": self.problem.skipped}

    def time(self, request, _lent):
        if self.problem is None:
            raise Skip("nothing was set up")
        collects = gc.isenabled()
        gc.disable()
        try:
            return self.measure(request)
        finally:
            if collects:
                gc.enable()

    def measure(self, request):
        call, compile_s, summary = self.problem.prepare(request["peer"])
        budget = request.get("budget_s") or math.inf
        if self.problem.on_gpu:
            seconds = self.problem.replay(request["peer"], request["repeats"], budget)
            return {"seconds": seconds, "compile_s": compile_s, **summary}
        started = time.perf_counter()
        call()
        seconds = []
        if time.perf_counter() - started > SLOW:
            # Nothing is gained by calling it once more.
            seconds.append(time.perf_counter() - started)
            if seconds[0] > budget or request["repeats"] == 1:
                return {"seconds": seconds, "compile_s": compile_s, **summary}
        started = time.perf_counter()
        for _ in range(request["repeats"] - len(seconds)):
            start = time.perf_counter_ns()
            call()
            seconds.append((time.perf_counter_ns() - start) * 1e-9)
            if time.perf_counter() - started > budget:
                break
        return {"seconds": seconds, "compile_s": compile_s, **summary}

    def quit(self, _request=None, _lent=None):
        self.problem = None
        while self.undo:
            self.undo.pop()()
        while UNDO:
            UNDO.pop()()
        return {}


def listen():
    """The requests as they come in. Their end is the end of the process, whatever it computes: nobody waits for it."""
    lines = queue.SimpleQueue()

    def read():
        # Without a buffer: its lock, held while reading, would disturb the end of the interpreter.
        with os.fdopen(os.dup(0), "rb", buffering=0) as requests:
            for line in requests:
                lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main():
    # Before packages are loaded, which may take long.
    requests = listen()
    # Whatever a library prints must not end up between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    session = Session()
    gc.disable()
    while True:
        line = requests.get()
        replies.write(session.answer(line) + "\n")
        replies.flush()
        if json.loads(line)["cmd"] == "quit":
            break


if __name__ == "__main__":
    main()
