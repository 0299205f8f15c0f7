"""manage.py certify: draw a calibration set, test it, watch over what is served."""

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from generation.certificate import CalibrationError
from generation.certification import CertificationError
from generation.models import Certificate, GenerationJob, Release
from generation.services import active_release
from medsyn.modalities import UnknownModality, kind_from_name
from medsyn.percent import percent
from ratings.calibration import progress
from ratings.forms import level_of, people
from ratings.models import CalibrationPlan
from ratings.services.calibration_plans import plan_calibration, plan_monitoring
from ratings.services.certification import certify, observe_all, obstacles, promise_of
from ratings.services.errors import StudyError


class Command(BaseCommand):
    help = (
        "Certificates for what a release serves. First --plan: draws calibration images from finished rlhf jobs at "
        "threshold 0 and makes the study that they are rated in. Then, rated: tests them, and stores certificate or "
        "refusal. --watch draws served images for the drift monitor, --observe shows it what was rated since."
    )

    def add_arguments(self, parser):
        parser.add_argument("--release", help="name or first digits of the digest; default: the active one")
        parser.add_argument("--study", help="name of the calibration study")
        parser.add_argument("--kinds", nargs="+", metavar="KIND", help="kinds claimed together; default: all")
        parser.add_argument("--alpha", type=float, help="largest share of poor images among those served (0.10)")
        parser.add_argument("--delta", type=float, help="probability of a broken promise (0.10)")
        parser.add_argument("--dry-run", action="store_true", help="say what would be tested; looks at no grade")
        parser.add_argument("--plan", action="store_true", help="draw the calibration set named by --study")
        parser.add_argument(
            "--jobs", nargs="+", type=int, metavar="JOB", help="with --plan: where its images are from"
        )
        parser.add_argument("--images", type=int, help="with --plan, --watch: images to rate, of each kind")
        parser.add_argument("--readers", nargs="+", default=[], metavar="USER", help="with --plan, --watch")
        parser.add_argument("--reusable", action="store_true", help="with --plan: may be tested several times")
        parser.add_argument("--seed", type=int, help="with --plan, --watch: of the draw; default: drawn, recorded")
        parser.add_argument("--watch", type=int, metavar="CERTIFICATE", help="draw --images that it served")
        parser.add_argument("--observe", action="store_true", help="show the drift monitor what was rated since")

    def handle(self, **options):
        modes = [name for name in ("plan", "observe") if options[name]] + ["watch"] * (options["watch"] is not None)
        if len(modes) > 1:
            raise CommandError(f"--{modes[0]} and --{modes[1]} exclude each other.")
        act = {"plan": self._plan, "watch": self._watch, "observe": self._observe}
        try:
            act[modes[0]](options) if modes else self._test(options)
        except (StudyError, CalibrationError, CertificationError, UnknownModality) as error:
            raise CommandError(str(error)) from error

    def _plan(self, options: dict) -> None:
        _require(options, "study", "jobs", "images")
        jobs = GenerationJob.objects.in_bulk(options["jobs"])
        missing = [key for key in options["jobs"] if key not in jobs]
        if missing:
            raise CommandError(f"There is no generation job {missing[0]}.")
        promise = {name: options[name] for name in ("alpha", "delta") if options[name] is not None}
        plan = plan_calibration(
            name=options["study"],
            release=_release(options["release"]),
            jobs=[jobs[key] for key in dict.fromkeys(options["jobs"])],
            num_images=options["images"],
            kinds=options["kinds"],
            is_reusable=options["reusable"],
            readers=_readers(options["readers"]),
            seed=options["seed"],
            **promise,
        )
        self._tell_plan(plan)

    def _watch(self, options: dict) -> None:
        _require(options, "study", "images")
        plan = plan_monitoring(
            name=options["study"],
            certificate=_certificate(options["watch"]),
            num_images=options["images"],
            readers=_readers(options["readers"]),
            seed=options["seed"],
        )
        self._tell_plan(plan)

    def _observe(self, options: dict) -> None:
        for certificate in observe_all():
            if not certificate.is_valid:
                self.stdout.write(f"Revoked: {certificate}. {certificate.revocation}")
                continue
            drift, number = certificate.drift, certificate.observations.count()
            self.stdout.write(f"Holds: {certificate}. {number} images seen, evidence {drift.capital:.2f} of 20.")

    def _test(self, options: dict) -> None:
        _require(options, "study")
        plan = CalibrationPlan.objects.filter(study__name=options["study"]).select_related("study", "release").first()
        if plan is None:
            raise CommandError(
                f"{options['study']!r} is no calibration set: its images are no draw that was settled before the "
                "ratings. Plan one with --plan."
            )
        self._compare(plan, options)
        kinds = plan.kinds if options["kinds"] is None else [kind_from_name(kind).slug for kind in options["kinds"]]
        if options["dry_run"]:
            self._tell_plan(plan)
            for obstacle in obstacles(plan, kinds):
                self.stdout.write(f"Not now: {obstacle}")
            return
        for certificate in certify(plan=plan, kinds=kinds):
            self._tell(certificate)

    @staticmethod
    def _compare(plan: CalibrationPlan, options: dict) -> None:
        """What is given must be what was settled."""
        for name in ("alpha", "delta"):
            if options[name] is not None and options[name] != getattr(plan, name):
                raise CommandError(
                    f"{name} was settled before the ratings: {getattr(plan, name)}, not {options[name]}. For another "
                    "one draw a new set."
                )
        if options["release"] and _release(options["release"]) != plan.release:
            raise CommandError(f"{plan.study} holds images of {plan.release}, not of {options['release']}.")

    def _tell_plan(self, plan: CalibrationPlan) -> None:
        self.stdout.write(f"{plan}, of {plan.release}, seed {plan.seed}, id {plan.public_id}")
        for kind, settled, drawn in progress(plan):
            line = f"  {kind_from_name(kind).prefix}: {settled} of {drawn} images rated"
            if plan.purpose == CalibrationPlan.Purpose.CERTIFY:
                promise = promise_of(plan, kind)
                line += (
                    f"; alpha {plan.alpha}, may spend {promise.spent_delta:.4f}, at least {promise.smallest_sample} "
                    f"images, thresholds from {plan.num_unrated[kind]} unrated ones"
                )
            self.stdout.write(line)

    def _tell(self, certificate: Certificate) -> None:
        if certificate.status == Certificate.Status.REFUSED:
            wanted = certificate.num_wanted
            advice = f" A new draw of about {wanted} rated images would be enough in 4 of 5 cases." if wanted else ""
            self.stdout.write(f"Refused: {certificate}. {certificate.refusal}{advice}")
            return
        number, poor = certificate.batch_statements[0]
        self.stdout.write(
            f"Certified: {certificate}. {certificate.sentence} Threshold {certificate.threshold:.4f}, "
            f"{percent(certificate.served_share, 0)} of images pass; upper bound "
            f"{percent(certificate.poor_bound, 1)}; of the next {number} at most {poor}. Hash {certificate.hash}"
        )


def _require(options: dict, *names: str) -> None:
    for name in names:
        if options[name] is None:
            raise CommandError(f"Give --{name}.")


def _release(name: str | None) -> Release:
    found = (
        [active_release()]
        if name is None
        else list(Release.objects.filter(Q(name=name) | Q(digest__startswith=name)))
    )
    if len(found) != 1 or found[0] is None:
        raise CommandError(
            "No release is active: name one with --release."
            if name is None
            else f"{len(found)} releases are {name!r}. Name one by the first digits of its digest."
        )
    return found[0]


def _certificate(key: int) -> Certificate:
    certificate = Certificate.objects.filter(pk=key).first()
    if certificate is None:
        raise CommandError(f"There is no certificate {key}.")
    return certificate


def _readers(names: list[str]) -> list[tuple]:
    known = {person.username: person for person in people().filter(username__in=names)}
    missing = [name for name in names if name not in known]
    if missing:
        known_names = get_user_model().objects.filter(username=missing[0])
        why = "cannot read: the account is closed or simulated" if known_names.exists() else "does not exist"
        raise CommandError(f"The account {missing[0]!r} {why}.")
    return [(known[name], level_of(known[name])) for name in names]
