from . import candidate_sampling as candidate_sampling
from .batches import Batch as Batch
from .batches import train_batches as train_batches
from .candidate_sampling.samplers import log_uniform_candidate_sampler as log_uniform_candidate_sampler
from .config import ModelConfig as ModelConfig
from .config import ScheduleConfig as ScheduleConfig
from .config import TrainConfig as TrainConfig
from .cooccurrence import word_vectors as word_vectors
from .corpus import load_corpus as load_corpus
from .corpus import prepare as prepare
from .cross_entropy import linear_cross_entropy as linear_cross_entropy
from .errors import InputError as InputError
from .evaluation import evaluate as evaluate
from .generation import generate as generate
from .losses import nce_loss as nce_loss
from .losses import sampled_softmax_loss as sampled_softmax_loss
from .model import LanguageModel as LanguageModel
from .row_updates import RowGradient as RowGradient
from .row_updates import sum_duplicates as sum_duplicates
from .row_updates import update_rows as update_rows
from .run import load_model as load_model
from .schedule import learning_rate_schedule as learning_rate_schedule
from .step import train_step as train_step
from .train_state import TrainState as TrainState
from .training_loop import train as train
from .vocabulary import Vocabulary as Vocabulary

__version__: str
