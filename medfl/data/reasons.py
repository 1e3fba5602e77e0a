"""Why an image was left out, in one of a few fixed sentences: decoders' words and paths of files can name patients."""

# what a reader may say, and what is told of it: longer sentences of the same words first
_REASONS: tuple[tuple[str, str], ...] = (
    ("does not exist", "the file does not exist"),
    ("may not be read", "the file may not be read"),
    ("needs more memory", "the file needs more memory than there is"),
    ("more than the limit", "the file is too large"),
    ("in no format that medfl reads", "the file is in no known format"),
    ("cannot be read as", "the file is damaged"),
    ("is damaged", "the file is damaged"),
    ("is empty", "the file is damaged"),
    (" ends after ", "the file is damaged"),
    ("holds no pixels", "the image holds no pixels"),
    ("are not finite", "values of the image are not finite"),
    ("correct the header", "the header cannot be used"),
    ("channels, preprocessing has", "the image does not fit the study"),
    ("space axes, preprocessing has", "the image does not fit the study"),
    ("label: ", "the label cannot be used"),
    ("boxes: ", "the boxes cannot be used"),
    ("mask: ", "the mask cannot be used"),
)
_OTHER = "the image cannot be used"


def outward(reason: str) -> str:
    """A fixed sentence that stands for a reason."""
    return next((told for words, told in _REASONS if words in reason), _OTHER)
