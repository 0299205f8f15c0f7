"""`manage.py evaluate_generator` from end to end on a tiny generator: its files, its resuming, what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from django.core.management import CommandError, call_command
from PIL import Image
from torchvision.models import inception_v3

from generation.diffusion.phantoms import FINDINGS, caption, draw
from medsyn.artifacts import file_sha256
from tests.tiny_models import build_tiny_pipeline
from training.evaluation.comparison import FeatureSets, distribution_figures, draw_splits
from training.evaluation.content import NAMES, content_figures
from training.evaluation.degradation import DEGRADATIONS, degrade
from training.evaluation.features import embed, medsyn_encoder, timm_encoder
from training.evaluation.images import EvaluationError, ImageSet, draw_phantoms, generated_files
from training.evaluation.inception import Inception, inception_figures
from training.simulation.phantom_dataset import write_phantom_dataset

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny pipeline, which is no phantom generator, and real images for it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("evaluation")
    build_tiny_pipeline().save_pretrained(folder / "pipeline")
    return {
        "pipeline": folder / "pipeline",
        "csv": write_phantom_dataset(folder / "real", num_images=44, seed=60_000_000, size=32),
    }


@pytest.fixture
def command(files, tmp_path):
    """``command("--flag", "value")``: 20 images of two steps against the CSV, into tmp_path / "out"."""

    def run(*flags: str, real: bool = True) -> None:
        own = ["--pretrained_model", files["pipeline"], "--num_inference_steps", "2", "--device", "cpu", "--k", "3"]
        own += ["--num_images", "20", "--num_real", "44", "--output_dir", tmp_path / "out"]
        call_command("evaluate_generator", *map(str, own), *(["--real", str(files["csv"])] if real else []), *flags)

    return run


@pytest.mark.slow
def test_an_evaluation_from_flags_to_files_and_from_a_folder_again(command, tmp_path, capsys):
    command("--seed", "3")
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    figures = {figure["name"]: figure for figure in report["figures"]}
    assert figures.keys() <= set(name for name in figures if name in printed), "every row is in the table"
    assert report["num_generated"] == 20 and report["num_real"] == 44 and report["seed"] == 3
    assert report["parameters_of_first_image"]["num_inference_steps"] == 2
    assert "--held_out_share" in figures["copies of training images (p <= 0.01)"]["absent_because"]
    assert report["by_kind"] == {}, "44 images of six kinds are too few of each"
    assert report["reference"]["what"] == "dataset CSV" and len(report["generators"][0]["weights_sha256"]) == 64
    # A random generator is told apart from phantoms by every figure that could.
    kid = figures["KID (medsyn-encoder)"]
    assert kid["value_interval"][0] > kid["real_interval"][1]
    assert figures["coverage (medsyn-encoder, k=3)"]["value"] < figures["coverage (medsyn-encoder, k=3)"]["real"]
    assert figures["kind right (judge)"]["value"] < 0.6 and figures["kind right (judge)"]["real"] == 1
    assert [ladder["degradation"] for ladder in kid["ladders"]] == [each.name for each in DEGRADATIONS]
    assert len(kid["ladders"][0]["values"]) == 5
    score = figures["inception score (torchvision Inception v3)"]
    assert score["value"] is None and "--inception_weights" in score["absent_because"]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 1000 and sheet.convert("L").getextrema()[0] < 50

    drawn = tmp_path / "drawn"
    shutil.move(tmp_path / "out" / "images", drawn)
    command("--seed", "3", "--generated", str(drawn))
    again = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert again["figures"] == report["figures"] and again["generated_folder"] == "drawn"


def test_a_stopped_evaluation_draws_only_what_is_missing(command, tmp_path, monkeypatch):
    from training.management.commands import evaluate_generator

    monkeypatch.setattr(evaluate_generator.Command, "_measure", lambda *arguments: None)
    command()
    images = tmp_path / "out" / "images"
    whole = {path.name: file_sha256(path) for path in images.iterdir()}
    assert len(whole) == 41
    for name in ("000003.json", "000007.png", "000007.json"):  # stopped between picture and sidecar, and before
        (images / name).unlink()
    kept = (images / "000000.png").stat().st_mtime_ns
    command()
    assert {path.name: file_sha256(path) for path in images.iterdir()} == whole
    assert (images / "000000.png").stat().st_mtime_ns == kept
    with pytest.raises(CommandError, match="another evaluation: .*num_inference_steps.* differ"):
        command("--num_inference_steps", "3")
    (images / "drawing.json").unlink()
    with pytest.raises(CommandError, match="holds other files"):
        command()


def test_what_cannot_be_evaluated_is_refused(command, files, tmp_path):
    with pytest.raises(CommandError, match="does not draw phantoms.*--real CSV"):
        command(real=False)
    with pytest.raises(CommandError, match="--num_images: 5 is out of range"):
        command("--num_images", "5")
    with pytest.raises(CommandError, match="--encoder and --encoder_weights belong together"):
        command("--encoder", "resnet18")
    with pytest.raises(CommandError, match="--inception_weights: there is no .*nowhere.pth"):
        command("--inception_weights", str(tmp_path / "nowhere.pth"))
    with pytest.raises(CommandError, match="--real and --held_out_of both"):
        command("--held_out_of", str(tmp_path))
    with pytest.raises(CommandError, match="is no run directory of manage.py finetune"):
        command("--held_out_of", str(tmp_path), real=False)
    (tmp_path / "bad.csv").write_text("path,Text,modality\nabsent.png,Fundus: left eye,Fundus\n")
    with pytest.raises(CommandError, match="(?s)--real: .*line 2.*absent.png"):
        command("--real", str(tmp_path / "bad.csv"), real=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError, match="no PNG with a JSON sidecar"):
        command("--generated", str(tmp_path / "empty"))


def test_a_picture_that_is_not_its_sidecars_is_refused(command, tmp_path, monkeypatch):
    from training.management.commands import evaluate_generator

    monkeypatch.setattr(evaluate_generator.Command, "_measure", lambda *arguments: None)
    command()
    shutil.copy(tmp_path / "out" / "images" / "000001.png", tmp_path / "out" / "images" / "000000.png")
    with pytest.raises(EvaluationError, match="000000.png is not the image that 000000.json describes"):
        generated_files(tmp_path / "out" / "images")


# --- the parts that need trained networks ---


@pytest.fixture(scope="module")
def phantoms():
    return draw_phantoms(90, seed=9, size=(128, 128))


@pytest.fixture(scope="module")
def encoded(phantoms):
    encoder = medsyn_encoder()
    degraded = {
        each.name: [embed(encoder, degrade(phantoms.pixels, each, s, seed=0)) for s in each.strengths]
        for each in DEGRADATIONS
    }
    return embed(encoder, phantoms.pixels), degraded


@pytest.mark.slow
def test_ladders_on_phantoms_come_out_in_order_and_the_floor_is_zero(phantoms, encoded):
    features, degraded = encoded
    blurred = degraded["blur"][-1]
    sets = FeatureSets("e", features, blurred, np.array(phantoms.groups), np.array(phantoms.groups), degraded)
    kid, mmd, _density, coverage, *_ = distribution_figures(sets, k=5, seed=0)
    assert kid.is_trustworthy and mmd.is_trustworthy and coverage.is_trustworthy
    assert kid.real.low < 0 < kid.real.high
    assert kid.value.low > kid.real.high, "the strongest blur is far outside the floor"
    # The rung's subsets and the figure's own see the same images: they agree within the subsets' spread.
    assert kid.details["subsets"]["mean"] == pytest.approx(kid.ladders[0].values[-1], rel=0.5)
    assert kid.ladders[0].noticed_from is not None
    shuffled = FeatureSets(
        "e", features, features, sets.real_groups, sets.generated_groups, {"blur": degraded["blur"][::-1]}
    )
    assert distribution_figures(shuffled, k=5, seed=0)[0].is_trustworthy is False


def test_halves_share_no_group(encoded):
    features, _ = encoded
    groups = np.array([f"patient {i // 4}" for i in range(len(features))])
    sets = FeatureSets("e", features, features[:30], groups, np.arange(30).astype(str), {})
    splits = draw_splits(sets, seed=1)
    assert all(not set(groups[s.half_a]) & set(groups[s.half_b]) for s in splits)
    assert {len(part) for s in splits for part in (s.half_a, s.half_b, s.generated)} == {30}
    assert len({tuple(sorted(s.half_a)) for s in splits}) == len(splits)


def test_the_judge_counts_what_captions_ask_for():
    """Sound phantoms, then the same pictures under captions of the other side, and of another finding."""
    classes = [phantom_class for phantom_class in FINDINGS if phantom_class.side] * 2
    pixels = np.stack([draw(one, seed=70_000_000 + i).pixels for i, one in enumerate(classes)])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def shares(asked):
        captions = tuple(caption(one, 5) for one in asked)
        images = ImageSet(pixels, captions, tuple(map(str, range(len(asked)))))
        return [figure.value.value for figure in content_figures(images, images, seed=0)[: len(NAMES)]]

    def mirrored(one):
        return next(
            x
            for x in FINDINGS
            if (x.kind, x.finding, x.sequence) == (one.kind, one.finding, one.sequence) and x.side != one.side
        )

    assert min(shares(classes)) > 0.97
    kind, finding, whole, side = shares([mirrored(one) for one in classes])
    assert min(kind, finding) > 0.97 and max(whole, side) < 0.03
    others = [next(x for x in FINDINGS if x.kind == one.kind and x.finding != one.finding) for one in classes]
    kind, finding, whole, _ = shares(others)
    assert kind > 0.97 and max(finding, whole) < 0.03


def test_other_captions_have_no_judge():
    captions = tuple(f"Fundus: photograph {i}" for i in range(4))
    images = ImageSet(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), captions, captions)
    figures = content_figures(images, images, seed=0)
    assert all(figure.value is None and "knows phantoms only" in figure.absent_because for figure in figures)


def test_a_timm_encoder_is_read_from_disk(tmp_path, phantoms):
    import timm

    network = timm.create_model("test_vit", pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    encoder = timm_encoder("test_vit", tmp_path / "weights.pth")
    found = embed(encoder, phantoms.pixels[:4])
    data = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    size = data["input_size"][1:]
    images = torch.nn.functional.interpolate(phantoms.pixels[:4].float() / 255, size, mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features((images - mean) / std), pre_logits=True)
    assert found == pytest.approx(expected.double().numpy(), abs=1e-4)
    with pytest.raises(EvaluationError, match="does not fit timm's test_resnet"):
        timm_encoder("test_resnet", tmp_path / "weights.pth")
    with pytest.raises(EvaluationError, match="timm knows no network"):
        timm_encoder("resnet_of_nobody", tmp_path / "weights.pth")


@pytest.mark.slow
def test_inception_is_read_from_disk_where_it_is(tmp_path, phantoms):
    network = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    inception = Inception.load(tmp_path / "inception.pth")
    features, probabilities = inception.read(phantoms.pixels[:3])
    assert features.shape == (3, 2048) and probabilities.sum(1) == pytest.approx(np.ones(3))
    images = torch.nn.functional.interpolate(
        phantoms.pixels[:3].float() / 255, (299, 299), mode="bilinear", antialias=True
    )
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        logits = network((images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    assert probabilities == pytest.approx(logits.softmax(1).numpy(), abs=1e-5)
    few = ImageSet(phantoms.pixels[:6], phantoms.captions[:6], phantoms.groups[:6])
    distance, score = inception_figures(few, few, tmp_path / "inception.pth", seed=0)
    assert distance.value.value > 0 and 1 <= score.value.value <= 6
    (tmp_path / "other.pth").write_bytes(b"no weights")
    with pytest.raises(EvaluationError, match="no weights that can be read safely"):
        Inception.load(tmp_path / "other.pth")
