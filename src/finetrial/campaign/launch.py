"""What the stages of one launch have in common."""

from dataclasses import dataclass

from finetrial.campaign.folder import Folder, Say
from finetrial.campaign.practice import Graders
from finetrial.campaign.prepare import Prepared
from finetrial.campaign.spec import Spec
from finetrial.model.base import Base


@dataclass(frozen=True)
class Launch:
    """One launch of a campaign, ready to train and to evaluate."""

    base: Base
    folder: Folder
    spec: Spec
    prepared: Prepared
    graders: Graders
    say: Say
