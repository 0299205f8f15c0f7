"""A small WordPiece vocabulary of our own, for the models trained here from nothing."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from medsyn.modalities import ALL_KINDS

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Every one of these is a piece by itself, at the start of a word and inside it: any English word can be spelt.
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_PUNCTUATION = ".,:;-/()[]%+<>='\"*&#?!_~^@|\\"

# Words that clinicians write about these kinds of image; they give the vocabulary pieces beyond the captions' own.
_MEDICAL_WORDS = """
    abdomen abnormal abscess acute adenopathy aneurysm angle ankle anterior aorta apex apical artery arthritis
    atelectasis atrophy axilla axillary basal base benign bilateral biopsy bleeding blunting bone bowel bright
    bronchiectasis bronchus calcification calcified carcinoma cardiac cartilage cataract catheter caudate cavity
    central cerebellum cerebral cervical chest choroid chronic clear clips colon consolidation contrast cornea
    cortex cortical costophrenic cyst cystic dark degeneration demyelination dense density diabetic diaphragm
    diffuse dilated disc disease distal dome ductal edema elbow elevated embolism emphysema enhancement enhancing
    enlarged epiretinal erosion exudate fibrosis field fissure flair flattened focal fovea foveal fracture frontal
    gallbladder gland glass glioma grade granuloma ground haematoma haemorrhage heart hemorrhage hepatic hernia
    heterogeneous hilar hilum hip homogeneous hyperinflation hyperintense hypointense infarct infection inferior
    infiltrates inflammation intensity interstitial ischaemia ischemic joint kidney knee large lateral lens lesion
    ligament lingula liver lobar lobe lobes lower lumbar lung lungs lymph lymphoma macula macular malignant margin
    margins marrow medial mediastinal mediastinum membrane meningioma metastasis middle midline mild mitral
    moderate multifocal multiple muscle myopia necrosis neovascularization nerve neural neuropathy node nodular
    oblique obstruction occipital occlusion oedema opacities opacity optic orbit osteophyte pacemaker pancreas
    papilledema parenchyma parietal patchy pelvis pericardial perihilar peripheral photoreceptor pigment pituitary
    plaque pleura pleural pneumonia polyp posterior proliferative prominent prostate prosthesis proximal pulmonary
    reticular retina retinal retinopathy rib ribs ring round rupture sagittal scan scar sclerosis septal septum
    severe shadow shift shoulder sinus skull small spiculated spinal spine spleen stenosis stent stroke structure
    subdural subretinal subtle sulcus superior surgical suspicious temporal tendon thalamus thickened thickening
    thin thoracic thorax thyroid tissue tortuous trachea traction trauma tuberculosis tumor tumour ulcer
    unilateral unremarkable upper uterus vascular vein venous ventricle ventricular vertebra vertebral vessel
    vessels vitreous volume white wrist yellow zone
"""


def build_tokenizer(captions: Iterable[str], *, size: int, max_tokens: int) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer of at most ``size`` pieces, learnt from captions and medical words.

    Words of the captions become whole pieces first; an unseen word is split into pieces, in the worst case its
    letters, so that none of ASCII turns into [UNK]. ``max_tokens`` counts [CLS] and [SEP].
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    spelling = [*_CHARACTERS, *(f"##{letter}" for letter in _CHARACTERS), *_PUNCTUATION]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=1,
        special_tokens=[*SPECIAL_TOKENS, *spelling],
        show_progress=False,
    )
    prefixes = [kind.prefix for kind in ALL_KINDS]
    tokenizer.train_from_iterator([*captions, *prefixes, *_MEDICAL_WORDS.split()], trainer)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return BertTokenizer(vocab={piece: index for index, (piece, _) in enumerate(pieces)}, model_max_length=max_tokens)
