# Plays the built plugin without a daemon: {{play}}
name: the answer is reported and remembered
mandate: {goal: How are the logs?}
state: {last: Nothing happened.}
replies:
  - {llm: All is well., usage: {input_tokens: 20, output_tokens: 4}}
# The runner is killed before each of its steps and must come to the same end.
cuts: all
expect:
  status: ok
  summary: All is well.
  steps: [{call: llm, contains: Nothing happened.}]
  state: {last: All is well.}
  usage: {llm_calls: 1, input_tokens: 20, output_tokens: 4}
