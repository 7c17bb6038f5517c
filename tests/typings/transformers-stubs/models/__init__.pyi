# The models that are used here, of hundreds: reading all of their files takes pyright a minute. What is missing is an
# unknown import symbol; name its folder then.
from .auto import *
from .bert import *
from .gpt2 import *
from .llama import *
from .mixtral import *
