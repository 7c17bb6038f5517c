# The models that are used here: pyright reads the files of all of them otherwise, which takes it longer than ours.
from .auto import AutoConfig as AutoConfig
from .auto import AutoModelForCausalLM as AutoModelForCausalLM
from .auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
from .auto import AutoTokenizer as AutoTokenizer
from .bert import BertConfig as BertConfig
from .bert import BertForMaskedLM as BertForMaskedLM
from .bert import BertForSequenceClassification as BertForSequenceClassification
from .distilbert import DistilBertConfig as DistilBertConfig
from .distilbert import DistilBertForMaskedLM as DistilBertForMaskedLM
from .gpt2 import GPT2Config as GPT2Config
from .gpt2 import GPT2LMHeadModel as GPT2LMHeadModel
from .llama import LlamaConfig as LlamaConfig
from .llama import LlamaForCausalLM as LlamaForCausalLM
from .mixtral import MixtralConfig as MixtralConfig
from .mixtral import MixtralForCausalLM as MixtralForCausalLM
from .mpnet import MPNetConfig as MPNetConfig
from .roberta import RobertaConfig as RobertaConfig
