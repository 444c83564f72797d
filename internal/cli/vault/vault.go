package vault

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	keyvaultv1 "github.com/redoubt-ml/redoubt/gen/redoubt/keyvault/v1"
	"github.com/redoubt-ml/redoubt/internal/cli/app"
	"github.com/redoubt-ml/redoubt/internal/cli/client"
	"github.com/redoubt-ml/redoubt/internal/cli/show"
)

func (a verbs) secrets() *cobra.Command {
	var stdin bool
	var file, contentType string
	set := &cobra.Command{Use: "set ID", Short: "Make a secret, or give it a new version", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		v, err := a.Value(ctx, "value of "+args[0]+": ", stdin, file)
		if err != nil {
			return err
		}
		defer v.Wipe()
		r, err := c.Secrets().SetSecret(ctx, &keyvaultv1.SetSecretRequest{Parent: w, SecretId: args[0], Value: v.Reveal(), ContentType: contentType})
		return a.Done(r, err, "%s has version %d", args[0], r.GetVersion())
	})}
	set.Flags().BoolVar(&stdin, "value-stdin", false, "read the value from standard input, all of it")
	set.Flags().StringVar(&file, "value-file", "", "read the value from a file")
	set.Flags().StringVar(&contentType, "content-type", "", "what kind of text it is")

	var version int64
	get := &cobra.Command{Use: "show ID", Short: "Print the value of a secret, and nothing else", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "secrets", args[0])
		if err != nil {
			return err
		}
		r, err := c.Secrets().AccessSecret(ctx, &keyvaultv1.AccessSecretRequest{Name: name, Version: version})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		_, err = a.Out.Write(r.GetValue())
		return err
	})}
	get.Flags().Int64Var(&version, "version", 0, "which; without it the newest that is enabled")

	list := &cobra.Command{Use: "list", Short: "The names and states of the secrets", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		out := &keyvaultv1.ListSecretsResponse{}
		_, err = app.Pages(0, func(token string, size int32) ([]*keyvaultv1.SecretVersion, string, error) {
			r, err := c.Secrets().ListSecrets(ctx, &keyvaultv1.ListSecretsRequest{Parent: w, PageSize: size, PageToken: token})
			return r.GetSecrets(), r.GetNextPageToken(), err
		}, func(s *keyvaultv1.SecretVersion) { out.Secrets = append(out.Secrets, s) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, s := range out.GetSecrets() {
			rows = append(rows, []string{show.Last(s.GetName()), strconv.FormatInt(s.GetVersion(), 10), show.State(s.GetDisabled()), s.GetContentType(), show.Ago(a.Now(), s.GetCreateTime())})
		}
		return a.Table([]string{"secret", "version", "state", "content type", "set"}, rows, "")
	})}

	toggle := func(use, short string, disabled bool) *cobra.Command {
		var v int64
		cmd := &cobra.Command{Use: use + " ID --version N", Short: short, Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
			if v < 1 {
				return app.Usagef("--version says which")
			}
			name, err := a.Named(ctx, c, "secrets", args[0])
			if err != nil {
				return err
			}
			r, err := c.Secrets().SetSecretDisabled(ctx, &keyvaultv1.SetSecretDisabledRequest{Name: name, Version: v, Disabled: disabled})
			return a.Done(r, err, "version %d of %s is %s", v, args[0], show.State(disabled))
		})}
		cmd.Flags().Int64Var(&v, "version", 0, "which")
		return cmd
	}
	remove := &cobra.Command{Use: "delete ID", Short: "Remove a secret with all versions", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "secrets", args[0])
		if err != nil {
			return err
		}
		if err := a.Sure("deleting the secret " + args[0]); err != nil {
			return err
		}
		r, err := c.Secrets().DeleteSecret(ctx, &keyvaultv1.DeleteSecretRequest{Name: name})
		return a.Done(r, err, "deleted %s", name)
	})}
	return app.Noun("secret", "Secrets of a workspace", set, get, list, toggle("disable", "Disable a version", true), toggle("enable", "Enable a version again", false), remove)
}

func (a verbs) keys() *cobra.Command {
	create := &cobra.Command{Use: "create ID", Short: "Make a key; it never leaves the vault", Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		r, err := c.Keys().CreateKey(ctx, &keyvaultv1.CreateKeyRequest{Parent: w, KeyId: args[0]})
		return a.Done(r, err, "%s has version %d", args[0], r.GetVersion())
	})}
	list := &cobra.Command{Use: "list", Short: "The keys of the workspace", Args: app.Exactly(0), RunE: a.With(func(ctx context.Context, c *client.Client, _ []string) error {
		w, err := a.WorkspaceName(ctx, c)
		if err != nil {
			return err
		}
		out := &keyvaultv1.ListKeysResponse{}
		_, err = app.Pages(0, func(token string, size int32) ([]*keyvaultv1.KeyVersion, string, error) {
			r, err := c.Keys().ListKeys(ctx, &keyvaultv1.ListKeysRequest{Parent: w, PageSize: size, PageToken: token})
			return r.GetKeys(), r.GetNextPageToken(), err
		}, func(k *keyvaultv1.KeyVersion) { out.Keys = append(out.Keys, k) })
		if err != nil || a.Structured() {
			return a.Answer(out, err)
		}
		var rows [][]string
		for _, k := range out.GetKeys() {
			rows = append(rows, []string{show.Last(k.GetName()), strconv.FormatInt(k.GetVersion(), 10), show.State(k.GetDisabled()), show.Ago(a.Now(), k.GetCreateTime())})
		}
		return a.Table([]string{"key", "version", "state", "made"}, rows, "")
	})}
	rotate := a.onKey("rotate ID", "Give a key a new version; older ones still decrypt", func(ctx context.Context, c *client.Client, name string) error {
		r, err := c.Keys().RotateKey(ctx, &keyvaultv1.RotateKeyRequest{Name: name})
		return a.Done(r, err, "%s has version %d", show.Last(name), r.GetVersion())
	})
	toggle := func(use, short string, disabled bool) *cobra.Command {
		var v int64
		cmd := a.onKey(use+" ID --version N", short, func(ctx context.Context, c *client.Client, name string) error {
			if v < 1 {
				return app.Usagef("--version says which")
			}
			r, err := c.Keys().SetKeyDisabled(ctx, &keyvaultv1.SetKeyDisabledRequest{Name: name, Version: v, Disabled: disabled})
			return a.Done(r, err, "version %d of %s is %s", v, show.Last(name), show.State(disabled))
		})
		cmd.Flags().Int64Var(&v, "version", 0, "which")
		return cmd
	}
	return app.Noun("key", "Keys of a workspace", create, list, rotate, a.crypt(true), a.crypt(false),
		toggle("disable", "Disable a version: it encrypts and decrypts nothing", true), toggle("enable", "Enable a version again", false))
}

func (a verbs) onKey(use, short string, f func(ctx context.Context, c *client.Client, name string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: app.Exactly(1), RunE: a.With(func(ctx context.Context, c *client.Client, args []string) error {
		name, err := a.Named(ctx, c, "keys", args[0])
		if err != nil {
			return err
		}
		return f(ctx, c, name)
	})}
}

// crypt encrypts or decrypts what comes, as bytes, from standard input or a file to standard output.
func (a verbs) crypt(encrypt bool) *cobra.Command {
	var stdin bool
	var file, associated string
	use, short := "decrypt ID", "Decrypt standard input or a file with a key, to standard output"
	if encrypt {
		use, short = "encrypt ID", "Encrypt standard input or a file with a key, to standard output"
	}
	cmd := a.onKey(use, short, func(ctx context.Context, c *client.Client, name string) error {
		v, err := a.Value(ctx, "text: ", stdin, file)
		if err != nil {
			return err
		}
		defer v.Wipe()
		if encrypt {
			r, err := c.Keys().Encrypt(ctx, &keyvaultv1.EncryptRequest{Name: name, Plaintext: v.Reveal(), AssociatedData: []byte(associated)})
			if err != nil || a.Structured() {
				return a.Answer(r, err)
			}
			_, err = a.Out.Write(r.GetCiphertext())
			return err
		}
		r, err := c.Keys().Decrypt(ctx, &keyvaultv1.DecryptRequest{Name: name, Ciphertext: v.Reveal(), AssociatedData: []byte(associated)})
		if err != nil || a.Structured() {
			return a.Answer(r, err)
		}
		_, err = a.Out.Write(r.GetPlaintext())
		return err
	})
	cmd.Flags().BoolVar(&stdin, "value-stdin", false, "read from standard input, all of it")
	cmd.Flags().StringVar(&file, "value-file", "", "read from a file")
	cmd.Flags().StringVar(&associated, "associated-data", "", "what the ciphertext is bound to, needed again to decrypt")
	return cmd
}
