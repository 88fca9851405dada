//! The recipes and data that come inside the program; the build script collects them from `recipes/`.

/// A file that came with the program.
#[derive(Debug)]
pub(crate) struct Embedded {
    /// Its name in `recipes/`, such as `quickstart.toml` or `data/tools.jsonl`.
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The schema's name beside recipes, which name it in their first line for editors.
pub(crate) const SCHEMA: &str = "recipe.schema.json";

/// The recipe of that name, with or without `.toml`.
pub(crate) fn recipe(name: &str) -> Option<&'static Embedded> {
    let wanted = name.strip_suffix(".toml").unwrap_or(name);
    RECIPES.iter().find(|recipe| recipe.stem() == wanted)
}

impl Embedded {
    /// The name without its ending.
    pub(crate) fn stem(&self) -> &'static str {
        self.name.strip_suffix(".toml").unwrap_or(self.name)
    }

    /// The comment at the head of a recipe, as one line, without what it says to editors.
    pub(crate) fn summary(&self) -> String {
        let comment = self.text.lines().map_while(|line| line.strip_prefix('#')).filter(|line| !line.starts_with(':'));
        comment.map(str::trim).collect::<Vec<_>>().join(" ").trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ft_trainer::recipe::Recipe;

    use super::*;

    #[test]
    fn every_recipe_is_valid_and_says_what_it_is_for() {
        assert!(recipe("quickstart").is_some());
        for recipe in RECIPES {
            Recipe::from_text(recipe.text, Path::new(recipe.name), &[]).unwrap();
            assert!(!recipe.summary().is_empty() && !recipe.summary().contains("recipe.schema"), "{}: {}", recipe.name, recipe.summary());
            assert!(recipe.text.starts_with(&format!("#:schema {SCHEMA}\n")), "{}", recipe.name);
        }
    }
}
