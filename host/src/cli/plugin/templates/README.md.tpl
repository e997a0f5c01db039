# {{name}}

A Kairos runner. It asks the model about the mandate's goal and remembers the answer for the next time.

```sh
{{steps}}
```

`kairos plugin test --help` shows all that a scenario can hold. The guide, with a tested sample for each question: {{guide}}.

To have a daemon run it, in `.kairos/config/daemon.yml`:

```yaml
runners:
  {{name}}: {plugin: {{file}}{{params}}}
```
