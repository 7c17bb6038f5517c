# What is used of llm-foundry, which the environment that is checked lacks: it pins older versions.
