// Package account is the commands about who one is, and about users: login, logout, whoami, context, user.
//
// It owns the way of a password from the terminal to the installation, and of the session's token into the settings. What is said to the OpenID
// provider is package openid's.
//
// Trust boundary: passwords come without echo or from standard input, and are wiped after use. A token is kept, never shown.
//
// Failure: a sign-in that fails leaves the settings as they were.
package account
