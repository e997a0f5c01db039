# {{name}}

A Kairos runner. It asks the model about the mandate's goal and remembers the answer for the next time.

```sh
{{build}}
kairos plugin check {{so}}
{{play}}
```

To have a daemon run it, in `.kairos/config/daemon.yml`:

```yaml
runners:
  {{name}}: {plugin: {{file}}{{params}}}
```
