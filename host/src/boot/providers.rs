//! Language models of the configuration, as the broker takes them.

use crate::boot::settings::Settings;
use crate::broker::llm::{Price, ProviderKind, ProviderSpec, Providers, ScriptSource};
use crate::config;
use crate::exit::{Failure, code};

/// Builds them; a script that cannot be read is a configuration error.
pub fn build(settings: &Settings) -> anyhow::Result<Providers> {
    let llm = &settings.config.llm;
    let mut specs = vec![];
    for (name, provider) in &llm.providers {
        let price = provider.price.map(|price| Price {
            input_nano_usd_per_mtok: price.input_nano_usd_per_mtok,
            output_nano_usd_per_mtok: price.output_nano_usd_per_mtok,
        });
        specs.push(ProviderSpec {
            name: name.clone(),
            kind: kind(&provider.kind, settings)?,
            model: provider.model.clone(),
            max_tokens: provider.max_tokens,
            price,
        });
    }
    Providers::build(llm.default.clone(), &specs).map_err(|errors| {
        let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Failure::new(code::USAGE, "replies_invalid", text.join("\n")).into()
    })
}

fn kind(kind: &config::llm::ProviderKind, settings: &Settings) -> anyhow::Result<ProviderKind> {
    Ok(match kind {
        config::llm::ProviderKind::Anthropic(_) => ProviderKind::Unserved("anthropic".to_owned()),
        config::llm::ProviderKind::OpenAi(_) => ProviderKind::Unserved("openai".to_owned()),
        config::llm::ProviderKind::Scripted { file } => ProviderKind::Scripted(script(file, settings)?),
    })
}

fn script(file: &std::path::Path, settings: &Settings) -> anyhow::Result<ScriptSource> {
    let path = settings.paths.at_root(file);
    let (value, lines) = config::replies::read(&path)
        .map_err(|report| Failure::new(code::USAGE, "replies_invalid", report.to_string()))?;
    Ok(ScriptSource { file: Some(path), value, lines })
}
