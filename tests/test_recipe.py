"""Recipes: every mistake is one clear line that names its place, and every layer has its turn."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmdd.compose import (
    compose,
    find_recipe,
    from_flags,
    is_recipe,
    merge,
    methods,
    nested,
    parse_overrides,
    recipes,
)
from mmdd.errors import UserError
from mmdd.recipe import PROTOCOLS, Recipe, validate

FILE = "mine.yaml"


def mistake(values):
    """The line that a recipe with these values is refused with."""
    with pytest.raises(UserError) as caught:
        validate(values, FILE)
    return one_line(caught.value)


def one_line(error):
    message = str(error)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path):
    def written(text):
        path = tmp_path / FILE
        path.write_text(text)
        return path

    return written


def refused(*words, **more):
    with pytest.raises(UserError) as caught:
        compose(*words, **more)
    return one_line(caught.value)


# -- unknown keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key", "suggestion"),
    [
        ({"optimize": {"steps": 3}}, "optimize", "optimise"),
        ({"optimise": {"stesp": 3}}, "optimise.stesp", "steps"),
        ({"optimise": {"inputs": {"momentun": 0.5}}}, "optimise.inputs.momentun", "momentum"),
        ({"synthetic": {"per_clas": 1}}, "synthetic.per_clas", "per_class"),
        ({"synthetic": {"representation": {"kidn": "direct"}}}, "representation.kidn", "kind"),
        ({"objective": {"kind": "distribution", "kernl": "linear"}}, "objective.kernl", "kernel"),
        ({"source": {"evry": 3}}, "source.evry", "every"),
        ({"source": {"kind": "pool", "net": 3}}, "source.net", "nets"),
        ({"experts": {"epochz": 3}}, "experts.epochz", "epochs"),
        (
            {"objective": {"kind": "trajectory", "step": 3}},
            "objective.step",
            "steps",
        ),
        (
            {"objective": ["distribution", {"kind": "gradient", "distanc": "l1"}]},
            "objective.terms.1.distanc",
            "distance",
        ),
        (
            {"synthetic": {"labels": {"kind": "soft", "temperatur": 2}}},
            "synthetic.labels.temperatur",
            "temperature",
        ),
        (
            {"synthetic": {"representation": {"kind": "packed", "factors": 2}}},
            "synthetic.representation.factors",
            "factor",
        ),
        ({"real": {"selector": {"kind": "k-means", "evry": 3}}}, "real.selector.evry", "every"),
        ({"data": {"sorce": "digits"}}, "data.sorce", "source"),
        ({"learner": {"widht": 32}}, "learner.widht", "width"),
        ({"learner": {"encoder": "vit", "patches": 2}}, "learner.patches", "patch"),
        ({"augment": {"kind": "dsa", "strateggy": "crop"}}, "augment.strateggy", "strategy"),
        ({"evaluate": {"lerners": 3}}, "evaluate.lerners", "learners"),
        ({"run": {"sead": 3}}, "run.sead", "seed"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(values, key, suggestion):
    message = mistake(values)
    assert message.startswith(f"{FILE}: unknown key '")
    assert f"{key}'" in message
    assert f"Did you mean '{suggestion}'?" in message
    assert "expected one of" in message


def test_further_mistakes_are_counted():
    assert "(1 more like this)" in mistake({"optimize": {}, "evaluat": {}})


def test_an_unknown_key_of_a_written_out_protocol_is_named():
    message = mistake({"evaluate": {"protocol": {"epochs": 5, "schedul": "dc"}}})
    assert "evaluate.protocol.schedul'" in message
    assert "'schedule'" in message


@pytest.mark.parametrize("text", ["on: 1\n", "3: 1\n", "optimise: {5: 1}\n"])
def test_keys_that_are_no_words_are_refused(write, text):
    assert "Keys should be strings" in refused(write(text))


# -- wrong values ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key", "came", "expected"),
    [
        ({"optimise": {"steps": "many"}}, "optimise.steps", "'many'", "integer"),
        ({"optimise": {"steps": 0}}, "optimise.steps", "0", "greater than or equal to 1"),
        ({"optimise": {"inputs": {"lr": -1}}}, "optimise.inputs.lr", "-1", "greater than 0"),
        ({"optimise": {"inputs": {"lr": float("nan")}}}, "optimise.inputs.lr", "nan", "finite"),
        ({"optimise": [1]}, "optimise", "[1]", "dictionary"),
        (
            {"objective": {"bandwidths": [1.0, "wide"]}},
            "objective.bandwidths.1",
            "'wide'",
            "number",
        ),
        ({"objective": {"bandwidths": []}}, "objective.bandwidths", "[]", "at least 1 item"),
        ({"evaluate": {"baselines": ["randm"]}}, "evaluate.baselines.0", "'randm'", "'random'"),
        ({"evaluate": {"learners": 2.5}}, "evaluate.learners", "2.5", "integer"),
        ({"learner": {"width": "broad"}}, "learner.width", "'broad'", "integer"),
        ({"data": {"channels": 2}}, "data.channels", "2", "1 or 3"),
        ({"synthetic": {"fraction": 1.5}}, "synthetic.fraction", "1.5", "less than 1"),
        ({"run": {"compile": "yes"}}, "run.compile", "'yes'", "'auto'"),
        ({"run": {"seed": -1}}, "run.seed", "-1", "greater than or equal to 0"),
        ({"source": {"kind": "pool", "nets": 0}}, "source.nets", "0", "greater than or equal to 1"),
        ({"source": {"kind": "pool", "train_on": "both"}}, "source.train_on", "'both'", "'real'"),
        (
            {"objective": {"kind": "gradient", "distance": "l3"}},
            "objective.distance",
            "'l3'",
            "'layerwise-cosine', 'cosine', 'mse', 'relative-mse' or 'l1'",
        ),
        (
            {"objective": ["distribution", {"kind": "gradient", "distance": "l3"}]},
            "objective.terms.1.distance",
            "'l3'",
            "'l1'",
        ),
        (
            {"objective": {"kind": "sum", "terms": [{"kind": "gradient", "weight": 0}]}},
            "objective.terms.0.weight",
            "0",
            "greater than 0",
        ),
        ({"objective": []}, "objective.terms", "[]", "at least 1 item"),
        ({"objective": ["distribution", 3]}, "objective.terms.1", "3", "dictionary"),
        (
            {"synthetic": {"labels": {"kind": "soft", "temperature": 0}}},
            "synthetic.labels.temperature",
            "0",
            "greater than 0",
        ),
        (
            {"synthetic": {"representation": {"kind": "packed", "factor": 1}}},
            "synthetic.representation.factor",
            "1",
            "greater than or equal to 2",
        ),
        ({"synthetic": {"step_size": 0}}, "synthetic.step_size", "0", "greater than 0"),
        ({"experts": {"keep": "all"}}, "experts.keep", "'all'", "'epochs' or 'ends'"),
    ],
)
def test_a_wrong_value_is_shown_with_what_was_expected(values, key, came, expected):
    message = mistake(values)
    assert message.startswith(f"{FILE}: key '{key}'")
    assert f"got {came}" in message
    assert expected in message.split("expected")[1]


def test_a_wrong_size_is_named_by_its_key():
    message = mistake({"data": {"size": "large"}})
    assert "key 'data.size'" in message


@pytest.mark.parametrize("section", ["data", "learner", "augment", "optimise", "synthetic"])
def test_an_empty_section_is_a_mistake(section):
    message = mistake({section: None})
    assert section in message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"synthetic": {"per_class": 1, "items": 20}}, "one budget, not per_class and items"),
        ({"synthetic": {"items": 20, "fraction": 0.1}}, "one budget, not items and fraction"),
        ({"objective": {"moments": 3, "moment_weights": [1.0]}}, "moment_weights has 1 values"),
        ({"objective": {"moments": 2, "kernel": "linear"}}, "leave moments=1"),
        ({"run": {"keep": "validation"}}, "set evaluate.every"),
        ({"evaluate": {"selection": "validation"}, "data": {"validation": 0}}, "validation split"),
        ({"evaluate": {"every": 5}, "data": {"validation": 0}}, "validation split"),
    ],
)
def test_combinations_that_cannot_be_are_refused(values, words):
    message = mistake(values)
    assert message.startswith(f"{FILE}: ")
    assert words in message


TRAJECTORY = {
    "objective": "trajectory",
    "source": "experts",
    "synthetic": {"step_size": 0.01},
    "experts": {"epochs": 5},
}


def trajectory(**sections):
    return {**TRAJECTORY, **sections}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (trajectory(source="fresh"), "objective trajectory needs source experts, not fresh"),
        (trajectory(source="pool"), "objective trajectory needs source experts, not pool"),
        (trajectory(synthetic={}), "needs synthetic.step_size, e.g. 0.01"),
        ({"synthetic": {"step_size": 0.1}}, "synthetic.step_size is learned by objective traj"),
        ({"synthetic": {"labels": "soft"}}, "objective distribution reads no labels"),
        (
            {"synthetic": {"labels": "soft"}, "objective": ["distribution", "distribution"]},
            "objective distribution reads no labels",
        ),
        (trajectory(source={"kind": "experts", "max_start": 5}), "start below 5 do not fit"),
        (trajectory(source={"kind": "experts", "first_max_start": 5}), "below 5 do not fit"),
        (trajectory(source={"kind": "experts", "min_start": 4}), "below 5 do not fit"),
        (trajectory(source={"kind": "experts", "length": 6}), "segments of 6 epochs"),
        (trajectory(experts={"keep": "ends"}), "set experts.keep=epochs"),
        (
            trajectory(source={"kind": "experts", "min_start": 2, "max_start": 2}),
            "max_start=2 must be above min_start=2",
        ),
        (
            trajectory(source={"kind": "experts", "first_max_start": 3, "max_start": 2}),
            "the window would shrink",
        ),
        (
            trajectory(objective={"kind": "trajectory", "memory": "tesla", "momentum": 0.5}),
            "memory=tesla is defined without momentum",
        ),
        ({"source": {"kind": "pool", "start": 4, "nets": 3}}, "start=4 is more than nets=3"),
        (
            {"objective": "cross-entropy"},
            "one of interpolated, pool, real-trained, experts, not fresh",
        ),
        (
            {"objective": ["distribution", "cross-entropy"], "source": "synthetic-trained"},
            "needs a source that has one",
        ),
        (
            {
                "objective": {"kind": "cross-entropy", "at": "drawn", "by_accuracy": True},
                "source": "real-trained",
            },
            "by_accuracy needs source pool, not real-trained",
        ),
        ({"evaluate": {"protocol": "mtt"}}, "trains at the learned step size"),
        ({"evaluate": {"protocol": "learned"}}, "trains at the learned step size"),
        (
            {"objective": {"statistic": "covariance", "moments": 2}},
            "statistic=covariance takes the place of moments and kernel",
        ),
        (
            {"objective": {"statistic": "characteristic", "kernel": "linear"}},
            "statistic=characteristic takes the place of moments and kernel",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(values, words):
    message = mistake(values)
    assert message.startswith(f"{FILE}: ")
    assert words in message


@pytest.mark.parametrize(
    "values",
    [
        TRAJECTORY,
        trajectory(source={"kind": "experts", "max_start": 4}),
        trajectory(source={"kind": "experts", "min_start": 3}),
        trajectory(source={"kind": "experts", "length": 5}),
        trajectory(synthetic={"step_size": 0.1, "labels": "soft"}),
        trajectory(objective=["trajectory", {"kind": "cross-entropy", "at": "drawn"}]),
        {"synthetic": {"labels": "soft"}, "objective": "gradient"},
        {"synthetic": {"labels": "teacher"}},
        {"evaluate": {"protocol": "mtt", "lr": 0.01}},
        trajectory(evaluate={"protocol": "mtt"}),
        {"objective": {"kind": "cross-entropy", "by_accuracy": True}, "source": "pool"},
        {"objective": {"kind": "cross-entropy", "at": "drawn"}},
        {
            "synthetic": {"labels": "soft"},
            "objective": ["distribution", "cross-entropy"],
            "source": "interpolated",
        },
    ],
)
def test_parts_that_fit_together_are_taken_and_come_back(values):
    made = validate(values, FILE)
    assert validate(made.model_dump(mode="json"), "stored") == made


@pytest.mark.parametrize(
    ("values", "momentum"),
    [
        (trajectory(evaluate={"protocol": "learned"}), 0.0),
        (
            trajectory(
                evaluate={"protocol": "learned"},
                objective={"kind": "trajectory", "momentum": 0.5},
            ),
            0.5,
        ),
        (
            trajectory(
                evaluate={"protocol": "learned"},
                objective=["distribution", {"kind": "trajectory", "momentum": 0.3}],
            ),
            0.3,
        ),
        (trajectory(evaluate={"protocol": "learned", "momentum": 0.8}), 0.8),
        (trajectory(evaluate={"protocol": "mtt"}), 0.9),
        ({"evaluate": {"protocol": "learned", "lr": 0.01}}, 0.0),
    ],
)
def test_a_learned_rate_is_judged_by_the_steps_it_is_for(values, momentum):
    made = validate(values, FILE)
    assert made.protocol.momentum == momentum
    given = made.evaluate.resolved()
    assert made.protocol == given.model_copy(update={"momentum": momentum})


def test_a_momentum_is_a_share_or_learned():
    assert "evaluate.momentum" in mistake({"evaluate": {"momentum": 1.0}})
    assert "evaluate.momentum" in mistake({"evaluate": {"momentum": "published"}})


def test_a_list_of_objectives_is_their_sum():
    made = validate({"objective": [{"kind": "gradient", "weight": 2}, "distribution"]}, FILE)
    assert made.objective.kind == "sum"
    assert [(term.kind, term.weight) for term in made.terms] == [
        ("gradient", 2.0),
        ("distribution", 1.0),
    ]
    single = validate({"objective": "gradient"}, FILE)
    assert single.terms == [single.objective]


def test_keeping_the_validated_state_needs_scores_during_the_run():
    values = {"run": {"keep": "validation"}, "evaluate": {"every": 50}}
    assert validate(values, FILE).run.keep == "validation"


# -- unknown names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "suggestion"),
    [
        ({"modality": "image"}, "modality 'image'", "images"),
        ({"task": "clasification"}, "task 'clasification'", "classification"),
        ({"learner": {"encoder": "convnt"}}, "encoder 'convnt'", "convnet"),
        ({"evaluate": {"encoders": ["mlp", "resnet"]}}, "encoder 'resnet'", "resnet18"),
        ({"augment": "dsaa"}, "augment kind 'dsaa'", "dsa"),
        ({"augment": {"kind": "nope"}}, "augment kind 'nope'", "none"),
    ],
)
def test_an_unknown_name_lists_the_names_and_the_nearest(values, kind, suggestion):
    message = mistake(values)
    assert message.startswith(f"{FILE}: unknown {kind}")
    assert f"Did you mean '{suggestion}'?" in message


@pytest.mark.parametrize(
    ("key", "name", "suggestion"),
    [
        ("objective", "distributon", "distribution"),
        ("objective", "gradent", "gradient"),
        ("source", "frsh", "fresh"),
        ("source", "expert", "experts"),
        ("synthetic.representation", "pakced", "packed"),
        ("synthetic.labels", "sft", "soft"),
        ("real.selector", "kmeans", "k-means"),
    ],
)
@pytest.mark.parametrize("short", [False, True])
def test_an_unknown_kind_is_shown_with_the_nearest(key, name, suggestion, short):
    section = name if short else {"kind": name}
    message = mistake(nested({key: section}))
    assert message.startswith(f"{FILE}: {key}: unknown {key.rpartition('.')[2]} '{name}'")
    assert f"Did you mean '{suggestion}'?" in message


@pytest.mark.parametrize("short", [False, True])
def test_an_unknown_kind_in_a_list_is_named_by_its_place(short):
    name = "gradent" if short else {"kind": "gradent"}
    message = mistake({"objective": ["distribution", name]})
    assert message.startswith(f"{FILE}: objective.terms.1: unknown objective 'gradent'")
    assert "Did you mean 'gradient'?" in message
    # a sum of sums would be a sum
    assert "unknown objective 'sum'" in mistake({"objective": ["distribution", "sum"]})


def test_an_unknown_protocol_is_shown_with_the_known_ones():
    message = mistake({"evaluate": {"protocol": "quik"}})
    assert message.startswith(f"{FILE}: evaluate.protocol")
    assert all(name in message for name in PROTOCOLS)
    assert "did you mean 'quick'?" in message


def test_an_unknown_method_is_shown_with_the_known_ones(write):
    for message in (refused(method="dmm"), refused(write("method: dmm\n"))):
        assert "unknown method 'dmm'" in message
        assert "Did you mean 'dm'?" in message


@pytest.mark.parametrize(
    "values",
    [{"learner": {"encoder": ["convnet"]}}, {"augment": {"kind": ["dsa"]}}],
    ids=["encoder", "kind"],
)
def test_a_name_that_is_no_word_is_refused(values):
    assert FILE in mistake(values)


def test_a_method_that_is_no_word_is_refused(write):
    assert "method" in refused(write("method: [dm]\n"))


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("optimise:\n  steps: 3\n  inputs: {lr: 1\n", "line 4"),
        ("method: dm\nsynthetic:\n\tper_class: 1\n", "line 3"),
        ("data: {source: digits}\nlearner: a: b\n", "line 2"),
    ],
)
def test_a_file_that_is_no_yaml_is_named_with_the_line(write, text, line):
    message = refused(write(text))
    assert FILE in message
    assert line in message
    assert "not valid YAML" in message


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just words\n"])
def test_a_file_without_keys_is_no_recipe(write, text):
    message = refused(write(text))
    assert FILE in message
    assert "is not a recipe" in message


def test_a_key_given_twice_is_refused(write):
    message = refused(write("optimise:\n  steps: 3\noptimise:\n  inputs: {lr: 1}\n"))
    assert "optimise" in message


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / FILE
    path.write_bytes(b"\xff\xfe\x00\x81")
    assert FILE in refused(path)


def test_a_file_that_is_not_there_is_refused_with_its_neighbour(write, tmp_path):
    write("method: dm\n")
    assert f"Did you mean '{FILE}'?" in refused(str(tmp_path / "mien.yaml"))
    assert "Did you mean 'images/digits_dm'?" in refused("image/digit_dm")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("optimise: {inputs: {lrr: 1}}\n", "optimise.inputs.lrr"),
        ("learner: {encoder: mlp, widht: 3}\n", "learner.widht"),
        ("learner: {encoder: convnt}\n", "convnt"),
        ("data: {sorce: digits}\n", "data.sorce"),
        ("synthetic: {per_class: 1, items: 3}\n", "synthetic"),
        ("evaluate: {encoders: [convnt]}\n", "convnt"),
    ],
)
def test_the_file_is_named_beside_the_key(write, text, key):
    message = refused(write(text))
    assert message.split(":")[0].endswith(FILE)
    assert key in message


@pytest.mark.parametrize(
    "text",
    ["modality: imags\n", "task: clasification\n", "augment: 5\n", "method: dmm\n"],
    ids=["modality", "task", "augment", "method"],
)
def test_the_file_is_named_beside_every_wrong_name(write, text):
    assert FILE in refused(write(text))


def test_the_layer_that_names_an_unknown_encoder_is_blamed(write):
    path = write("evaluate: {encoders: [convnt]}\n")
    assert FILE in refused(path, options={"evaluate.lr": 0.1})


def test_the_layer_that_made_the_mistake_is_named(write):
    path = write("optimise: {steps: 5, inputs: {lr: 1.0}}\n")
    assert refused(path, options={"optimise.inputs.momentum": 2}).startswith("override: ")
    assert refused(path, flags={"optimise.steps": 0}).startswith("command line: ")
    good = {"optimise.inputs.momentum": 0.5}
    bad = write("optimise: {steps: 5, inputs: {lr: -1.0}}\n")
    assert FILE in refused(bad, options=good).split(":")[0]


# -- what ships ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes())
def test_every_shipped_recipe_validates(name):
    made = compose(name)
    assert made.method in methods()
    assert name.endswith(f"_{made.method}")
    assert name.split("/")[0] == made.modality
    assert made.data.source
    assert is_recipe(name)
    assert find_recipe(name) == recipes()[name]


@pytest.mark.parametrize("name", methods())
def test_every_method_validates_without_data(name):
    made = compose(method=name)
    assert made.method == name
    assert made.data.source is None


def test_something_ships():
    assert recipes()
    assert "dm" in methods()


@pytest.mark.parametrize("name", recipes())
def test_a_stored_recipe_is_the_recipe(name, tmp_path):
    made = compose(name, options={"synthetic.labels": "hard", "evaluate.encoders": ["mlp"]})
    again = validate(made.model_dump(mode="json"), "stored")
    assert again == made
    assert again.model_dump(mode="json") == made.model_dump(mode="json")
    import yaml

    path = tmp_path / FILE
    path.write_text(yaml.safe_dump(made.model_dump(mode="json")))
    assert compose(path) == made


def test_a_stored_recipe_keeps_another_budget_and_a_written_out_protocol():
    values = {
        "synthetic": {"items": 33},
        "evaluate": {"protocol": {"name": "mine", "epochs": 7, "schedule": "cosine"}, "lr": 0.5},
    }
    made = validate(values, FILE)
    assert made.synthetic.per_class is None
    assert validate(made.model_dump(mode="json"), "stored") == made
    resolved = made.evaluate.resolved()
    assert (resolved.name, resolved.epochs, resolved.lr) == ("mine", 7, 0.5)


def test_defaults_are_complete():
    assert Recipe().synthetic.per_class == 10
    assert Recipe() == validate({}, FILE)
    assert PROTOCOLS["dc"].epochs == 1000
    # the shared protocols are templates: a recipe must not write into them
    validate({"evaluate": {"epochs": 3}}, FILE).evaluate.resolved()
    assert PROTOCOLS["dc"].epochs == 1000


# -- layers ----------------------------------------------------------------------------------------


def test_overrides_are_read_as_yaml():
    words = ["learner.width=32", "evaluate.encoders=[mlp, vit]", "run.minutes=null", "a.b=true"]
    assert parse_overrides(words) == {
        "learner.width": 32,
        "evaluate.encoders": ["mlp", "vit"],
        "run.minutes": None,
        "a.b": True,
    }
    assert parse_overrides(["a=b=c", "d=", "e='3'"]) == {"a": "b=c", "d": None, "e": "3"}
    assert parse_overrides(["a={b"]) == {"a": "{b"}
    for word in ("steps", "=3", ""):
        with pytest.raises(UserError, match="key=value"):
            parse_overrides([word])


def test_overrides_reach_their_keys():
    words = [
        "learner.width=32",
        "evaluate.encoders=[mlp, vit]",
        "run.threads=null",
        "optimise.inputs.lr=1e-2",
        "objective.features=all",
    ]
    made = compose("images/digits_dm", options=parse_overrides(words))
    assert made.learner.width == 32
    assert made.evaluate.encoders == ["mlp", "vit"]
    assert made.run.threads is None
    assert made.optimise.inputs.lr == 0.01
    assert made.objective.features == "all"
    # and nothing else
    assert made.learner.encoder == "convnet"
    assert made.optimise.steps == compose("images/digits_dm").optimise.steps


def test_an_override_below_a_value_is_refused():
    assert "'a.b.c'" in refused(options={"a.b": 1, "a.b.c": 2})
    assert "optimise.steps" in refused(options={"optimise.steps.more": 2})


def test_method_then_file_then_flags_then_overrides(write):
    path = write("optimise: {steps: 5, inputs: {lr: 7.0}}\nreal: {per_group: 11}\n")
    made = compose(
        path,
        method="dm",
        flags={"optimise.steps": 6, "run.seed": 4, "real.per_group": None},
        options={"optimise.inputs.lr": 8.0, "run.seed": 9},
    )
    assert made.optimise.steps == 6
    assert made.run.seed == 9
    assert made.optimise.inputs.lr == 8.0
    assert made.real.per_group == 11
    assert made.optimise.inputs.momentum == 0.5


def test_merging_writes_high_over_low():
    low = {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 5}
    high = {"a": {"c": 3, "x": 4}, "d": [9]}
    assert merge(low, high) == {"a": {"b": 1, "c": 3, "x": 4}, "d": [9], "e": 5}
    assert low == {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 5}
    assert merge({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}
    assert merge({"a": {"b": 2}}, {"a": 1}) == {"a": 1}


@pytest.mark.parametrize("method", ["dc", "dsa", "idc"])
def test_options_of_a_methods_only_objective_are_overridden(method):
    before = compose(method=method)
    made = compose(method=method, options=parse_overrides(["objective.distance=mse"]))
    assert made.objective.distance == "mse"
    assert made.objective.parameters == before.objective.parameters
    assert made.source == before.source


def test_options_are_laid_over_a_bare_word(write):
    path = write("objective: gradient\nsource: pool\nsynthetic: {labels: teacher}\n")
    words = ["objective.distance=l1", "source.students=1", "synthetic.labels.every=7"]
    made = compose(path, options=parse_overrides(words))
    assert (made.objective.kind, made.objective.distance) == ("gradient", "l1")
    assert (made.source.kind, made.source.students) == ("pool", 1)
    assert (made.synthetic.labels.kind, made.synthetic.labels.every) == ("teacher", 7)
    # another kind is another section, and a protocol that is written out is one's own
    made = compose(path, options={"source.kind": "fresh", "source.every": 3})
    assert (made.source.kind, made.source.every) == ("fresh", 3)
    assert compose(path, options={"evaluate.protocol.epochs": 7}).evaluate.resolved().epochs == 7


def test_one_of_several_objectives_is_not_silently_lost():
    message = refused(method="idm", options={"objective.features": "all"})
    assert message.startswith("override: 'objective' is a list of 2")
    assert "got 'objective.features'" in message
    words = ["objective=[distribution, {kind: cross-entropy, weight: 2}]"]
    made = compose(method="idm", options=parse_overrides(words))
    assert [term.weight for term in made.terms] == [1.0, 2.0]
    one = compose(method="idm", options={"objective.kind": "distribution"})
    assert [term.kind for term in one.terms] == ["distribution"]


def test_another_kind_replaces_the_options_of_the_old_one():
    low = {"objective": {"kind": "distribution", "kernel": "linear"}, "learner": {"width": 3}}
    assert merge(low, {"objective": {"kind": "gradient"}})["objective"] == {"kind": "gradient"}
    same = merge(low, {"objective": {"kind": "distribution", "moments": 2}})["objective"]
    assert same == {"kind": "distribution", "kernel": "linear", "moments": 2}
    low = {"learner": {"encoder": "convnet", "norm": "batch"}}
    assert merge(low, {"learner": {"encoder": "mlp"}})["learner"] == {"encoder": "mlp"}
    assert merge(low, {"learner": {"width": 8}})["learner"] == {
        "encoder": "convnet",
        "norm": "batch",
        "width": 8,
    }


def test_another_budget_replaces_the_old_one():
    low = {"synthetic": {"per_class": 10, "clamp": False}}
    high = {"synthetic": {"items": 25}}
    assert merge(low, high)["synthetic"] == {"items": 25, "clamp": False}
    # a budget of null is no budget: the old one stays
    kept = merge(low, {"synthetic": {"items": None}})["synthetic"]
    assert kept["per_class"] == 10
    assert compose("images/digits_dm", flags={"synthetic.items": 25}).synthetic.per_class is None


def test_every_leaf_may_have_its_own_rate():
    made = validate({"optimise": {"inputs.image": {"lr": 0.5}}}, FILE)
    assert made.optimise.model_dump()["inputs.image"]["lr"] == 0.5


# -- nothing heavy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["mmdd", "mmdd.recipe", "mmdd.compose", "mmdd.cli", "mmdd.catalog"]
)
def test_light_modules_import_nothing_heavy(module):
    code = (
        f"import sys, {module}; "
        "heavy = ('torch', 'torchvision', 'torchaudio', 'transformers', 'torch_geometric',"
        " 'datasets', 'sklearn', 'matplotlib'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_validating_a_recipe_imports_nothing_heavy():
    code = (
        "import sys; from mmdd.compose import compose; compose('images/digits_dm'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_options_of_a_leaf_below_may_be_nested_and_override_those_that_are_dotted():
    given = {"inputs.x": {"lr": 2.0, "momentum": 0.9}, "inputs": {"lr": 3.0, "x": {"lr": 4.0}}}
    leaves = Recipe.model_validate({"optimise": given}).optimise.by_leaf()
    assert (leaves["inputs.x"].lr, leaves["inputs.x"].momentum) == (4.0, 0.9)
    assert leaves["inputs"].lr == 3.0
    deep = Recipe.model_validate({"optimise": {"inputs": {"a": {"b": {"lr": 5.0}}}}})
    assert deep.optimise.by_leaf()["inputs.a.b"].lr == 5.0
    with pytest.raises(UserError, match="unknown key"):
        compose(method="dm", options={"optimise.inputs.x.speed": 1})


def test_a_method_of_one_modality_refuses_data_of_another():
    with pytest.raises(UserError, match="the method is for graphs"):
        compose(method="gcond", options={"modality": "images"})


def test_a_method_loses_what_another_modality_does_not_know():
    made = compose(method="dance", options={"modality": "audio"})
    assert made.evaluate.augment is None
    assert made.augment.kind in ("none", "siamese")


def test_a_method_has_other_rates_where_a_modality_says_so():
    here, there = compose(method="dm"), compose(method="dm", options={"modality": "text"})
    assert here.optimise.inputs.lr == 5.0
    assert (there.optimise.inputs.lr, there.optimise.inputs.by_items) == (0.5, True)
    assert there.optimise.inputs.momentum == here.optimise.inputs.momentum
    said = {"modality": "text", "optimise.inputs.lr": 2.0}
    assert compose(method="dm", options=said).optimise.inputs.lr == 2.0
    assert all("/" not in name for name in methods())


# -- the modality that nothing names ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["recipe", "options"])
def test_a_recipe_that_names_no_modality_has_that_of_its_data(tmp_path, how):
    table = tmp_path / "texts.csv"
    table.write_text("text,label\nwhat a day,0\nhow bad it was,1\nvery good,0\nawful,1\n")
    if how == "recipe":
        path = tmp_path / "mine.yaml"
        path.write_text(f"method: datm\ndata: {{source: {table}}}\n")
        made = from_flags(str(path))
    else:
        made = compose(method="datm", options={"data.source": str(table)})
    assert made.modality == "text"
    # what the method does otherwise on texts
    assert made == from_flags(str(table), method="datm")


def test_data_that_tell_nothing_are_images_with_what_a_method_does_there():
    for made in (
        compose(method="dance", options={"data.source": "owner/name"}),
        from_flags("owner/name", method="dance"),
        compose(method="dance"),
    ):
        assert made.modality == "images"
        assert made.evaluate.protocol.name == "idc"


def test_a_judging_net_of_the_same_kind_has_what_it_leaves_out_from_the_learner():
    options = {"learner.width": 8, "learner.norm": "layer"}
    made = compose("images/digits_dm", options=options | {"evaluate.learner.width": 16})
    assert made.evaluate.learner == made.learner.model_copy(update={"width": 16})
    for same in ("convnet", {"encoder": "convnet"}):
        assert compose(
            "images/digits_dm", options=options | {"evaluate.learner": same}
        ).evaluate.learner == (made.learner)
    other = compose(
        "images/digits_dm", options=options | {"evaluate.learner": "mlp"}
    ).evaluate.learner
    assert other == compose("images/digits_dm", options={"learner.encoder": "mlp"}).learner
    again = compose(
        "images/digits_dm", options={"evaluate.learner": made.evaluate.learner.model_dump()}
    )
    assert again.evaluate.learner == made.evaluate.learner
