"""Mistakes in profile.csv, links.csv and sensitivity.json, and files that are not what they should be."""

from collections.abc import Iterator

from tests.mistakes.mistake import PLAN, SIMULATE, Mistake, edited, made_a_folder, removed, replaced, written


def table_mistakes() -> Iterator[Mistake]:
    yield from profile_mistakes()
    yield from links_mistakes()
    yield from sensitivity_mistakes()
    yield from files_that_are_none()


def profile_mistakes() -> Iterator[Mistake]:
    first_row = "cpu,tiny,48,88,3,64,float,prefill,1,8,0,"

    def profile(old: str, new: str, says: str, command: tuple[str, ...] = PLAN, names: str = "profile.csv") -> Mistake:
        return Mistake(says, names, replaced("out/profile.csv", old, new), command)

    yield profile("# format = 1", "# format = 2", "its first line must read '# format = 1'")
    yield profile("seconds\n", "watts\n", "the column watts is not known; known: activations")
    yield profile("device,model", "devise,model", "the column devise is not known; did you mean device?")
    yield profile(",seconds\n", "\n", "the column seconds is missing")
    yield profile("device,model", "device,device", "the column device stands there twice")
    yield profile("phase,", "", "the column phase is missing")
    for old, new, says in [
        ("48", "wide", "hidden_size = 'wide' is not a whole number"),
        (",3,64,", ",3.5,64,", "bits = '3.5' is not a whole number"),
        (",3,64,", ",7,64,", "row 1: bits = 7: choose from"),
        (",3,64,", ",3,50,", "row 1: group_size = 50: must be"),
        ("float", "int8", "row 1: activations = 'int8': only"),
        ("prefill", "training", "phase = 'training' is not one of prefill, decode"),
        (",8,0,", ",-8,0,", "row 1: batch and seconds are above 0, tokens not below it"),
        (",8,0,", ",8,0,7,", "row 1: 13 values for 12 columns"),
    ]:
        yield profile(first_row, first_row.replace(old, new), says)
    for seconds, says in [
        ("fast", "seconds = 'fast' is not a number"),
        ("nan", "seconds = nan is not a finite number"),
        ("-inf", "seconds = -inf is not a finite number"),
        ("-0.1", "row 2: batch and seconds are above 0"),
    ]:
        yield profile("tiny,48,88,3,64,float,prefill,2,8,0,", f"tiny,48,88,3,64,float,prefill,2,8,0,{seconds}\n#", says)
    scattered = "".join(f"cpu,tiny,48,88,3,32,float,prefill,{batch},{8 * batch},0,0.1\n" for batch in (1, 2, 4))
    says = "prefill of tiny's decoder at 3g32 bits on cpu: 3 points that are no whole grid determine no regression"
    yield profile(first_row, f"{scattered}{first_row}", says, SIMULATE, "profile")


def links_mistakes() -> Iterator[Mistake]:
    columns, row = "from,to,alpha_s,bytes_per_s\n", "a,b,1e-4,1e9\n"
    for text, says in [
        (columns + row, "its first line must read '# format = 1'"),
        ("# format = 1\nfrom,too,alpha_s,bytes_per_s\n", "the column too is not known; did you mean to?"),
        ("# format = 1\nfrom,to,alpha_s\n", "the column bytes_per_s is missing"),
        (f"# format = 1\n{columns}{row}{row}", "a to b stands there twice"),
        (f"# format = 1\n{columns},b,1e-4,1e9\n", "row 1: a row reads from,to,alpha_s,bytes_per_s"),
        (f"# format = 1\n{columns}{row}b,a,soon,1e9\n", "row 2: alpha_s = 'soon' is not a number"),
        (f"# format = 1\n{columns}a,b,-1,1e9\n", "row 1: link: alpha_s = -1.0 and bytes_per_s"),
        (f"# format = 1\n{columns}a,b,1e-4\n", "row 1: 3 values for 4 columns"),
        (f"# format = 1\n{columns}a,b,0,1e-320\n", "row 1: link: alpha_s = 0.0 and bytes_per_s"),
        (f"# format = 1\n{columns}{'a' * 200_000},b,1e-4,1e9\n", "not CSV (field larger than field limit"),
    ]:
        yield Mistake(says, "links.csv", written("out/links.csv", text), PLAN)


def sensitivity_mistakes() -> Iterator[Mistake]:
    def sensitivity(says: str, change, command: tuple[str, ...] = ("check", "out/plan.json")) -> Mistake:
        return Mistake(says, "sensitivity.json", edited("out/sensitivity.json", change), command)

    for key in ("method", "model", "text", "unit", "choices", "omega"):
        yield sensitivity(f"{key} is missing", lambda table, key=key: table.pop(key))
    yield sensitivity("format 3, this version reads", lambda table: table.update(format=3))
    yield sensitivity("omega = 1 is not a list", lambda table: table.update(omega=1))
    yield sensitivity("omega[2] = 'x' is not a list", lambda table: table["omega"].__setitem__(2, "x"))
    yield sensitivity("omega[1][0] = '0.1' is not a number", lambda table: table["omega"][1].__setitem__(0, "0.1"))
    yield sensitivity("omega[1][3] = True is not a number", lambda table: table["omega"][1].__setitem__(3, True))
    yield sensitivity("omega[0][1] = nan is not", lambda table: table["omega"][0].__setitem__(1, float("nan")))
    yield sensitivity("omega[3][2] = -0.5: an indicator", lambda table: table["omega"][3].__setitem__(2, -0.5))
    errors = {"scale": [0.1] * 4, "omega": [[0.001] * 4] * 4, "embedding": [], "head": []}
    for says, change in [
        ("errors = 0.1 is not a table of keys", 0.1),
        ("errors: omega is missing", {"scale": [0.1]}),
        ("errors: scale[0] = -0.1: a standard error is", errors | {"scale": [-0.1] * 4}),
        ("errors: there is not one for each value of the table", errors),
    ]:
        yield sensitivity(says, lambda table, change=change: table.update(errors=change))
    yield sensitivity("omega[1] has 3 values for 4 choices", lambda table: table["omega"][1].pop())
    yield sensitivity("choices[1]: bits = 6: choose", lambda table: table["choices"][1].update(bits=6))
    yield sensitivity("3g64, 3g64, 8g64, 16 stands there twice", lambda table: table["choices"][1].update(bits=3))
    yield sensitivity("omga is not known; did you mean omega?", lambda table: table.update(omga=[]))
    yield sensitivity("it is for the model 0123, and", lambda table: table.update(model="0123"))


def files_that_are_none() -> Iterator[Mistake]:
    for file, what, command in [
        ("run.toml", "config", ("check", "out/plan.json")),
        ("hostfile", "hostfile", ("check", "out/plan.json")),
        ("out/plan.json", "plan", ("check", "out/plan.json")),
        ("out/sensitivity.json", "sensitivity", ("check", "out/plan.json")),
        ("out/profile.csv", "profile", PLAN),
        ("text.txt", "text", PLAN),
        ("tiny/config.json", "model config", PLAN),
    ]:
        name = file.rpartition("/")[2]
        if name not in ("profile.csv", "config.json"):  # without a profile it is measured
            yield Mistake(f"{name}: cannot be read (No such file", name, removed(file), command)
        yield Mistake(f"{name}: cannot be read (Is a directory", name, made_a_folder(file), command)
        yield Mistake(f"{name}: not a text file (byte 1 is", name, written(file, b"x\xff\xfe"), command)
        if name.endswith(".json"):
            yield Mistake(f"{what} ", name, written(file, "{"), command)
            yield Mistake(f"{name}: expected a JSON object", name, written(file, "[1]"), command)
            yield Mistake(f"{name}: not JSON (maximum recursion", name, written(file, "[" * 10**5), command)
            empty = "not JSON (Expecting value" if name == "config.json" else "it is empty"
            yield Mistake(f"{name}: {empty}", name, written(file, ""), command)
