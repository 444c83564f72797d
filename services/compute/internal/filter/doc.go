// Package filter owns the grammar in which MLflow's clients search: filters, and what to order by.
//
//	metrics.loss < 0.1 AND params."batch size" = '32' AND tags.stage LIKE 'prod%' AND attributes.status != 'FAILED'
//
// A filter is terms joined by AND. A term is a key, a comparator and a value. Keys are attributes (also without "attributes."), metrics,
// params and tags; which attributes there are, and whether they are numbers or text, says a Schema. Text is written in single or double
// quotes, and a quote in it twice; a key with other signs than letters, digits and _ . - / stands in double quotes or backticks.
//
// Trust boundary: filters come from strangers. A parser looks at each byte at most twice and keeps no more terms and values than its
// bounds; patterns of LIKE are matched without regular expressions.
//
// Invariants: a term about what a record does not have fits it not, whatever the comparator, except IS NULL. Comparison of numbers is
// IEEE 754's: NaN equals nothing. In an order, NaN comes after all numbers and what is missing after all else, in both directions.
//
// Failure: what is not of the grammar is INVALID_ARGUMENT with the field and the place. Nothing here does any input or output.
package filter
