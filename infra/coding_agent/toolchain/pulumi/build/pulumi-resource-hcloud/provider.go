package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/terraform-plugin-sdk/v2/diag"
	"github.com/hashicorp/terraform-plugin-sdk/v2/helper/schema"
	"github.com/hetznercloud/hcloud-go/v2/hcloud"
)

// defaultPollInterval is the pause between two looks at what the cloud is still doing.
const defaultPollInterval = 500 * time.Millisecond

// provider returns the resources, and what the plugin can be configured with.
func provider() *schema.Provider {
	return &schema.Provider{
		Schema: map[string]*schema.Schema{
			"token":            {Type: schema.TypeString, Optional: true, Sensitive: true},
			"endpoint":         {Type: schema.TypeString, Optional: true},
			"endpoint_hetzner": {Type: schema.TypeString, Optional: true},
			"poll_interval":    {Type: schema.TypeString, Optional: true},
			"poll_function":    {Type: schema.TypeString, Optional: true},
		},
		ResourcesMap: map[string]*schema.Resource{
			"hcloud_ssh_key":  sshKey(),
			"hcloud_firewall": firewall(),
			"hcloud_server":   server(),
		},
		ConfigureContextFunc: configure,
	}
}

// configure makes the client. The environment is read here and not declared as a default: a default would be kept in
// the stack's state, with the token.
func configure(_ context.Context, d *schema.ResourceData) (any, diag.Diagnostics) {
	options := []hcloud.ClientOption{hcloud.WithApplication("pulumi-resource-hcloud", version)}
	// A preview of what is not there yet needs no token.
	if token := setting(d, "token", "HCLOUD_TOKEN"); token != "" {
		options = append(options, hcloud.WithToken(token))
	}
	if endpoint := setting(d, "endpoint", "HCLOUD_ENDPOINT"); endpoint != "" {
		options = append(options, hcloud.WithEndpoint(endpoint))
	}
	if endpoint := setting(d, "endpoint_hetzner", "HETZNER_ENDPOINT"); endpoint != "" {
		options = append(options, hcloud.WithHetznerEndpoint(endpoint))
	}
	pauses, err := polling(d.Get("poll_interval").(string), d.Get("poll_function").(string))
	if err != nil {
		return nil, diag.FromErr(err)
	}
	return hcloud.NewClient(append(options, hcloud.WithPollOpts(hcloud.PollOpts{BackoffFunc: pauses}))...), nil
}

// polling returns the pauses between two looks at an action.
func polling(interval, function string) (hcloud.BackoffFunc, error) {
	pause := defaultPollInterval
	if interval != "" {
		var err error
		if pause, err = time.ParseDuration(interval); err != nil {
			return nil, fmt.Errorf("pollInterval: %w", err)
		}
	}
	switch function {
	case "", "constant":
		return hcloud.ConstantBackoff(pause), nil
	case "exponential":
		return hcloud.ExponentialBackoffWithOpts(hcloud.ExponentialBackoffOpts{
			Base: pause, Multiplier: 2, Cap: max(pause, 10*time.Second),
		}), nil
	}
	return nil, fmt.Errorf("pollFunction: %q is neither constant nor exponential", function)
}

// setting returns what was configured, or else what the environment has.
func setting(d *schema.ResourceData, name, variable string) string {
	if given := d.Get(name).(string); given != "" {
		return given
	}
	return os.Getenv(variable)
}
